package buckets_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kansa-audit/kansa/consumers/buckets"
)

func TestChecksumsAreForS3Itself(t *testing.T) {
	t.Parallel()
	const parameter = "request_checksum_calculation="
	for target, want := range map[string]string{
		"s3://a?region=eu-central-1":                                          "",
		"s3://a?region=us-east-1&endpoint=http://minio:9000":                  parameter + "when_required",
		"s3://a?endpoint=http://minio:9000&" + parameter + "when_supported":   parameter + "when_supported",
		"s3://a?endpoint=http://minio:9000&use_path_style=true&region=region": parameter + "when_required",
		"file:///srv/a?endpoint=x":                                            "",
		"mem://":                                                              "",
		"::":                                                                  "",
	} {
		got := buckets.Address(target)
		if want == "" && got != target || !strings.Contains(got, want) || strings.Count(got, parameter) > 1 {
			t.Errorf("%s: opened as %s, want %q in it", target, got, want)
		}
	}
	if err := buckets.Explain(errors.New("XAmzContentSHA256Mismatch: does not match")); !strings.Contains(err.Error(), parameter+"when_required") {
		t.Errorf("no remedy in: %v", err)
	}
}
