// Command manifests decodes Kubernetes' manifests from standard input strictly into the types of its API: an unknown or
// misspelt field, or a value of the wrong type, is an error.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	n, err := check(os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		os.Exit(1)
	}
	fmt.Printf("%d manifests are what the API knows\n", n)
}

func check(in io.Reader) (n int, err error) {
	strict := json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, json.SerializerOptions{Yaml: true, Strict: true})
	documents := yaml.NewYAMLReader(bufio.NewReader(in))
	var errs []error
	for {
		text, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return n, errors.Join(errs...)
		}
		if err != nil {
			return n, err
		}
		n++
		if _, kind, err := strict.Decode(text, nil, nil); err != nil {
			errs = append(errs, fmt.Errorf("document %d (%v): %w", n, kind, err))
		}
	}
}
