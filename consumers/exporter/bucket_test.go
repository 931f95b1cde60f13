package exporter_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/kansa-audit/kansa/consumers/exporter"
)

// objectStore is a small store of the S3 kind that refuses what some of them do not know.
type objectStore struct {
	// refuse is why a request is refused, with 501; empty if it is not.
	refuse func(*http.Request) string

	mu      sync.Mutex
	objects map[string][]byte
}

func (s *objectStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if header := s.refuse(r); header != "" {
		w.WriteHeader(http.StatusNotImplemented)
		_, _ = io.WriteString(w, "<Error><Code>NotImplemented</Code><Message>A header you provided implies functionality that is not implemented: "+header+"</Message></Error>")
		return
	}
	object, there := s.objects[r.URL.Path]
	switch r.Method {
	case http.MethodPut:
		s.objects[r.URL.Path] = body
		w.Header().Set("ETag", `"x"`)
	case http.MethodDelete:
		delete(s.objects, r.URL.Path)
		w.WriteHeader(http.StatusNoContent)
	case http.MethodHead, http.MethodGet:
		if !there {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("ETag", `"x"`)
		w.Header().Set("Last-Modified", "Sat, 28 Nov 2026 12:00:00 GMT")
		_, _ = w.Write(object)
	}
}

// Stores that know neither the SDK's checksums nor If-None-Match get archives, by either kind of credentials.
func TestBucketsOfOtherStores(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	checksums := func(r *http.Request) string {
		for name := range r.Header {
			if strings.HasPrefix(strings.ToLower(name), "x-amz-checksum") || strings.Contains(r.Header.Get("x-amz-content-sha256"), "TRAILER") {
				return "x-amz-checksum"
			}
		}
		return ""
	}
	conditions := func(r *http.Request) string {
		if r.Header.Get("If-None-Match") != "" {
			return "If-None-Match"
		}
		return ""
	}
	for name, refuse := range map[string]func(*http.Request) string{"checksums": checksums, "conditions": conditions} {
		for _, secret := range []string{"", "test"} {
			t.Run(name+secret, func(t *testing.T) {
				store := &objectStore{refuse: refuse, objects: map[string][]byte{}}
				server := httptest.NewServer(store)
				t.Cleanup(server.Close)
				f := newFixture(t, 24)
				d := exporter.Destination{
					Name: "store", Organization: "acme", FromFile: true, BucketKeyID: secret, BucketSecret: secret,
					Bucket: "s3://arch?region=us-east-1&use_path_style=true&endpoint=" + server.URL,
				}
				f.run(t, d)
				report, err := f.exporter.Test(t.Context(), d)
				if err != nil || !report.OK {
					t.Fatalf("%+v, %v", report, err)
				}
				if said := strings.Contains(report.Steps[0].Found, "If-None-Match"); said != (name == "conditions") {
					t.Errorf("the test found %q", report.Steps[0].Found)
				}
				r := day("x-" + name)
				r.MailTo, r.Destination = nil, "store"
				f.submit(t, r)
				e := f.until(t, r.ID, func(e exporter.Export) bool { return e.State != exporter.Waiting && e.State != exporter.Running })
				store.mu.Lock()
				defer store.mu.Unlock()
				if object := store.objects["/arch/"+e.File]; e.State != exporter.Done || int64(len(object)) != e.Bytes || len(store.objects) != 1 {
					t.Errorf("%+v; the store has %d objects", e, len(store.objects))
				}
			})
		}
	}
}
