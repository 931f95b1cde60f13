package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// summary is the last line of a run. What was not measured, or has no peer on this machine, is null.
type summary struct {
	IngestEventsPerS    *float64 `json:"ingest_events_per_s"`
	IngestMBPerS        *float64 `json:"ingest_mb_per_s"`
	IngestColumnarRatio *float64 `json:"ingest_columnar_ratio"`
	IngestBrokerRatio   *float64 `json:"ingest_broker_ratio"`
	IngestNDJSONPerS    *float64 `json:"ingest_ndjson_events_per_s"`
	IngestNDJSONRatio   *float64 `json:"ingest_ndjson_ratio"`
	IngestSinglePerS    *float64 `json:"ingest_single_events_per_s"`
	IngestGatewayPerS   *float64 `json:"ingest_gateway_events_per_s"`
	WriterPeakMiB       *float64 `json:"writer_peak_mib"`
	PeerRatio           *float64 `json:"peer_ratio"`
	PeerEventsPerS      *float64 `json:"peer_events_per_s"`
	LatencyIdleP50      *float64 `json:"latency_idle_p50_ms"`
	LatencyIdleP99      *float64 `json:"latency_idle_p99_ms"`
	LatencyHalfLoadP50  *float64 `json:"latency_half_load_p50_ms"`
	LatencyHalfLoadP99  *float64 `json:"latency_half_load_p99_ms"`
	QueryActorMs        *float64 `json:"query_actor_ms"`
	QueryTargetMs       *float64 `json:"query_target_ms"`
	QueryDayMs          *float64 `json:"query_day_ms"`
	QueryTextMs         *float64 `json:"query_text_ms"`
	RollupRatio         *float64 `json:"rollup_ratio"`
	RollupRowsPerS      *float64 `json:"rollup_rows_per_s"`
	ArchiveCopyRatio    *float64 `json:"archive_copy_ratio"`
	ArchiveZipRatio     *float64 `json:"archive_zip_ratio"`
	ArchiveFirstByteMs  *float64 `json:"archive_first_byte_ms"`
	UploadRatio         *float64 `json:"upload_ratio"`
	Upload20msRatio     *float64 `json:"upload_20ms_ratio"`
	UploadRcloneRatio   *float64 `json:"upload_rclone_ratio"`
	GrowthIngestLinear  *float64 `json:"growth_ingest_linearity"`
	GrowthRollupLinear  *float64 `json:"growth_rollup_linearity"`
	GrowthArchiveLinear *float64 `json:"growth_archive_linearity"`
	GrowthIngestMemory  *float64 `json:"growth_ingest_memory"`
	GrowthRollupMemory  *float64 `json:"growth_rollup_memory"`
	GrowthArchiveMemory *float64 `json:"growth_archive_memory"`
}

// result is what a run found.
type result struct {
	Date    time.Time         `json:"date"`
	Mode    string            `json:"mode"`
	Machine machine           `json:"machine"`
	Seconds float64           `json:"seconds"`
	Summary summary           `json:"summary"`
	Details map[string]any    `json:"details"`
	Failed  map[string]string `json:"failed,omitempty"`
	// Missing says why a figure is null.
	Missing []string `json:"missing,omitempty"`

	tables []table
}

// table is one measurement as people see it.
type table struct {
	title  string
	header []string
	rows   [][]string
	notes  []string
}

func newResult(ctx context.Context, b *bench) *result {
	r := &result{Date: time.Now().UTC().Truncate(time.Second), Mode: scale(b, "full", "quick"), Details: map[string]any{}, Failed: map[string]string{}}
	r.Machine = thisMachine(ctx)
	return r
}

func (r *result) fail(name string, err error) { r.Failed[name] = err.Error() }

// miss says why a figure will be null.
func (r *result) miss(what string, why any) {
	if text := fmt.Sprintf("%s: %v", what, why); !slices.Contains(r.Missing, text) {
		r.Missing = append(r.Missing, text)
	}
}

func (r *result) add(name string, details any, tables ...table) {
	r.Details[name] = details
	r.tables = append(r.tables, tables...)
}

// write prints the tables and the last line, and keeps both beside what was measured in detail.
func (r *result) write(dir string, stdout io.Writer) error {
	text := r.markdown()
	fmt.Fprintln(stdout, text)
	whole, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of results: %w", err)
	}
	name := filepath.Join(dir, r.Date.Format(time.DateOnly)+"-"+r.Mode)
	for ext, data := range map[string][]byte{".json": append(whole, '\n'), ".md": []byte(text)} {
		if err := os.WriteFile(name+ext, data, 0o644); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
	}
	line, err := json.Marshal(r.Summary)
	if err != nil {
		return fmt.Errorf("encode the summary: %w", err)
	}
	fmt.Fprintln(stdout, string(line))
	return nil
}

func (r *result) markdown() string {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Kansa, measured %s (%s)\n\n", r.Date.Format(time.DateOnly), r.Mode)
	fmt.Fprintf(&b, "%s\n\n", r.Machine)
	for _, t := range r.tables {
		fmt.Fprintf(&b, "## %s\n\n", t.title)
		line := func(cells []string) {
			for _, c := range cells {
				fmt.Fprintf(&b, "| %s ", c)
			}
			b.WriteString("|\n")
		}
		line(t.header)
		for i := range t.header {
			b.WriteString([]string{"|---", "|---:"}[min(i, 1)])
		}
		b.WriteString("|\n")
		for _, row := range t.rows {
			line(row)
		}
		b.WriteString("\n")
		for _, n := range t.notes {
			fmt.Fprintf(&b, "%s\n", n)
		}
		if len(t.notes) > 0 {
			b.WriteString("\n")
		}
	}
	for _, m := range r.Missing {
		fmt.Fprintf(&b, "- not measured: %s\n", m)
	}
	for name, why := range r.Failed {
		fmt.Fprintf(&b, "- failed: %s: %s\n", name, why)
	}
	return b.String()
}

// figure is a value of the summary, rounded to what it is good for.
func figure(v float64) *float64 {
	switch {
	case v >= 1000:
		v = float64(int64(v + 0.5))
	case v >= 10:
		v = float64(int64(v*10+0.5)) / 10
	default:
		v = float64(int64(v*1000+0.5)) / 1000
	}
	return &v
}

func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.0f k", v/1e3)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
