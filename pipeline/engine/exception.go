package engine

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ClickHouse's codes that the endpoint itself raises or treats in its own way.
const (
	codeBadArguments         = 36
	codeNotImplemented       = 48
	codeSyntaxError          = 62
	codeUnknownSetting       = 115
	codeTimeoutExceeded      = 159
	codeReadonly             = 164
	codeQuotaExceeded        = 201
	codeTooManyQueries       = 202
	codeLimitExceeded        = 290
	codeCannotDecompress     = 271
	codeQueryWasCancelled    = 394
	codeAccessDenied         = 497
	codeAuthenticationFailed = 516
	codeUnknownException     = 1002
)

// exception is an error as ClickHouse reports it.
type exception struct {
	code    int
	message string // begins with "Code: "
	// retryAfter makes it 429 with Retry-After.
	retryAfter time.Duration
}

func (e *exception) Error() string { return e.message }

func exceptionf(code int, format string, args ...any) *exception {
	return &exception{code: code, message: fmt.Sprintf("Code: %d. DB::Exception: "+format, append([]any{code}, args...)...)}
}

var codePrefix = regexp.MustCompile(`Code: (\d+)\. `)

// parseException makes an exception of the text that libchdb gives. What has no code gets that of an
// unknown exception, since clients look for one.
func parseException(text string) *exception {
	match := codePrefix.FindStringSubmatchIndex(text)
	if match == nil {
		return exceptionf(codeUnknownException, "%s (UNKNOWN_EXCEPTION)", strings.TrimSpace(text))
	}
	code, err := strconv.Atoi(text[match[2]:match[3]])
	if err != nil {
		code = codeUnknownException
	}
	return &exception{code: code, message: strings.TrimSpace(text[match[0]:])}
}

// asException makes any error one that clients understand.
func asException(err error) *exception {
	var e *exception
	if errors.As(err, &e) {
		return e
	}
	return exceptionf(codeUnknownException, "%s (UNKNOWN_EXCEPTION)", err)
}

// httpStatus is the status that a server answers with for an exception.
func (e *exception) httpStatus() int {
	if e.retryAfter > 0 {
		return http.StatusTooManyRequests
	}
	switch e.code {
	case 194: // REQUIRED_PASSWORD
		return http.StatusUnauthorized
	case 192, 193, codeAccessDenied, codeAuthenticationFailed, codeReadonly: // unknown user, wrong password, access denied, read-only
		return http.StatusForbidden
	case 6, 26, 27, 38, 41, 42, 43, 44, 53, 62, 69, 70, 72, 33, 107, 117, 130, 131, 271, 349, 386, 456, 457,
		codeBadArguments:
		return http.StatusBadRequest
	case 46, 47, 50, 57, 60, 63, 66, 81, 82, 115, 16:
		return http.StatusNotFound
	case codeLimitExceeded:
		return http.StatusRequestEntityTooLarge
	case codeNotImplemented:
		return http.StatusNotImplemented
	case 159: // TIMEOUT_EXCEEDED
		return http.StatusRequestTimeout
	default:
		return http.StatusInternalServerError
	}
}
