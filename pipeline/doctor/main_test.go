package doctor_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

func TestMain(m *testing.M) {
	pipelinetest.Main()
	goleak.VerifyTestMain(m)
}
