package api

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/kansa-audit/kansa/pipeline/request"
)

// plain answers with a problem, outside huma.
func plain(w http.ResponseWriter, r *http.Request, status int, detail string) {
	p := Problem{ErrorModel: huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: detail}, RequestID: request.ID(r.Context())}
	body, err := json.Marshal(p)
	if err != nil {
		http.Error(w, detail, status)
		return
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // who asked may be gone
}

// ownPages lets only our own pages use a browser's session, sign in and sign out (cross-site request forgery), and takes bodies of the API
// only as what a page of another site cannot send without asking. public is exports.public_url, or empty. except are paths with rules of
// their own.
func ownPages(next http.Handler, public string, except ...string) http.Handler {
	publicHost := hostOf(public)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/api/") || slices.Contains(except, r.URL.Path) {
			next.ServeHTTP(w, r)
			return
		}
		// A page of another site cannot know an API key. The OpenID provider leads back from its own site.
		// Any other Authorization leaves the session in force.
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") && r.URL.Path != OpenIDCallback {
			if why := foreign(r, publicHost); why != "" {
				plain(w, r, http.StatusForbidden, "refused a request from a page of another site: "+why+": open the console, or use an API key")
				return
			}
		}
		if r.ContentLength != 0 && r.Method != http.MethodGet && r.Method != http.MethodHead {
			media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
			if err != nil || media != "application/json" {
				plain(w, r, http.StatusUnsupportedMediaType, "the body is "+media+": send it as Content-Type: application/json")
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

func hostOf(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return ""
	}
	return u.Host
}

// foreign says by which header a browser tells that a page of another site had it ask.
func foreign(r *http.Request, publicHost string) string {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return "Sec-Fetch-Site: " + site
	}
	origin := r.Header.Get("Origin")
	if origin == "" {
		return ""
	}
	u, err := url.Parse(origin)
	if err == nil && u.Host != "" && (u.Host == publicHost || slices.Contains(request.From(r.Context()).Hosts, u.Host)) {
		return ""
	}
	return "Origin: " + origin
}
