package gateway_test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"syscall"
	"testing"

	"github.com/kansa-audit/kansa/producers/gateway"
	"github.com/kansa-audit/kansa/schema/codec"
)

// What an event costs in a request of so many, without the sockets of HTTP, with publisher and broker in the
// same process: cpu-ns/event is that of all three.
func BenchmarkPost(b *testing.B) {
	for _, n := range []int{1, 200, 20_000} {
		b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
			s := start(b, gateway.Config{}, 0)
			_, lines := made(b, 1, n)
			lines = withoutIDs(lines) // they are made anew, so that no message is one that was there
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			if n <= 200 {
				b.SetParallelism(32)
			}
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, gateway.Path, bytes.NewReader(lines))
					req.RemoteAddr = "127.0.0.1:1"
					req.Header.Set("Content-Type", codec.ContentNDJSON)
					w := httptest.NewRecorder()
					if s.gateway.ServeHTTP(w, req); w.Code != http.StatusAccepted {
						b.Errorf("%d: %.500s", w.Code, w.Body)
						return
					}
				}
			})
			b.StopTimer()
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			events := float64(b.N) * float64(n)
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/events, "cpu-ns/event")
			b.ReportMetric(events/b.Elapsed().Seconds(), "events/s")
		})
	}
}
