package pipeline_test

import (
	"testing"

	"github.com/kansa-audit/kansa/pipeline/pipelinetest"
)

func TestMain(m *testing.M) {
	pipelinetest.Main()
	application()
	m.Run()
}
