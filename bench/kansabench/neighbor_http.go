package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/kansa-audit/kansa/schema"
	"github.com/kansa-audit/kansa/schema/codec"
)

// tenant is a client of the API at an address of its own, since limits count addresses.
type tenant struct {
	URL          string `json:"url"`
	Address      string `json:"address"`
	Organization string `json:"organization"`

	http *http.Client
}

func (t *tenant) open() {
	t.http = &http.Client{
		Transport: &http.Transport{DialContext: t.dial, MaxIdleConnsPerHost: 256, DisableCompression: true},
		Timeout:   2 * time.Minute,
	}
}

func (t *tenant) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(t.Address)}}).DialContext(ctx, network, address)
}

func (t *tenant) request(ctx context.Context, method, path, key, contentType string, body []byte, header ...string) (*http.Response, error) {
	to := path
	if !strings.HasPrefix(path, "http://") {
		to = t.URL + path
	}
	req, err := http.NewRequestWithContext(ctx, method, to, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := t.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return res, nil
}

// do returns the answer's body too, and an error only if there was no answer.
func (t *tenant) do(ctx context.Context, method, path, key, contentType string, body []byte, header ...string) (status int, answer []byte, err error) {
	res, err := t.request(ctx, method, path, key, contentType, body, header...)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err = io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// make has something made that the answer describes.
func (t *tenant) make(ctx context.Context, path, key string, what, to any) error {
	body, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("encode %v: %w", what, err)
	}
	status, answer, err := t.do(ctx, http.MethodPost, path, key, codec.ContentJSON, body)
	if err != nil {
		return err
	}
	if status != http.StatusCreated {
		return fmt.Errorf("POST %s: %d: %.500s", path, status, answer)
	}
	return json.Unmarshal(answer, to)
}

// key makes one of a role.
func (t *tenant) key(ctx context.Context, operator, role string, n int) (string, error) {
	var made struct{ Secret string }
	err := t.make(ctx, "/api/v1/keys", operator, map[string]any{"name": fmt.Sprintf("%s-%s-%d", t.Organization, role, n), "organization": t.Organization, "role": role}, &made)
	return made.Secret, err
}

// batches are bodies of NDJSON, made beforehand.
func (t *tenant) batches(n, events int) (all [][]byte, err error) {
	var body []byte
	count := 0
	eachEvent(n*events, func(e *schema.Event) {
		e.ID, e.Organization, e.Trail = [16]byte{}, t.Organization, schema.Activity
		var failed error
		if body, failed = codec.AppendJSON(body, e); failed != nil {
			err = fmt.Errorf("encode an event: %w", failed)
		}
		body = append(body, '\n')
		if count++; count%events == 0 {
			all, body = append(all, body), nil
		}
	})
	return all, err
}
