package engine

import "strings"

type tokenKind int

const (
	tokenEnd    tokenKind = iota
	tokenWord             // a keyword, name or number
	tokenQuoted           // "name" or `name`
	tokenString           // 'text' or $tag$text$tag$
	tokenSign             // anything else, one byte
	tokenBroken           // a quote or comment without an end; text says which
)

type token struct {
	kind       tokenKind
	text       string // of a word or sign
	start, end int
}

// is reports whether the token is this keyword; a quoted name never is one.
func (t token) is(keyword string) bool {
	return t.kind == tokenWord && strings.EqualFold(t.text, keyword)
}

func (t token) startsData() bool { return t.is("VALUES") || t.is("FORMAT") || t.is("SELECT") }

// scanner splits a statement as ClickHouse's lexer does, as far as needed to tell words from quoted text
// and comments. It never fails: what it cannot read is one sign or a broken token, and it always gets on.
type scanner struct {
	text string
	at   int
}

func (s *scanner) peek() token {
	ahead := *s
	return ahead.next()
}

func (s *scanner) next() token {
	if broken, ok := s.skipBlank(); !ok {
		return broken
	}
	start := s.at
	if start >= len(s.text) {
		return token{kind: tokenEnd, start: start, end: start}
	}
	c := s.text[start]
	switch c {
	case '\'':
		return s.quoted(tokenString, "string")
	case '"', '`':
		return s.quoted(tokenQuoted, "quoted name")
	case '$':
		if t, ok := s.heredoc(); ok {
			return t
		}
	}
	if !isWordByte(c) {
		s.at++
		return token{kind: tokenSign, text: s.text[start:s.at], start: start, end: s.at}
	}
	for s.at < len(s.text) && isWordByte(s.text[s.at]) {
		s.at++
	}
	return token{kind: tokenWord, text: s.text[start:s.at], start: start, end: s.at}
}

// skipBlank passes over white space and comments.
func (s *scanner) skipBlank() (token, bool) {
	for s.at < len(s.text) {
		rest := s.text[s.at:]
		switch {
		case strings.IndexByte(" \t\r\n\f\v", rest[0]) >= 0:
			s.at++
		case strings.HasPrefix(rest, "\u00a0"), strings.HasPrefix(rest, "\ufeff"):
			s.at += len(string([]rune(rest[:min(len(rest), 3)])[0]))
		case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "#!"), strings.HasPrefix(rest, "# "):
			end := strings.IndexByte(rest, '\n')
			if end < 0 {
				end = len(rest) - 1
			}
			s.at += end + 1
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				start := s.at
				s.at = len(s.text)
				return token{kind: tokenBroken, text: "comment", start: start, end: s.at}, false
			}
			s.at += end + 4
		default:
			return token{}, true
		}
	}
	return token{}, true
}

// quoted reads to the closing quote; a backslash or a doubled quote escapes it.
func (s *scanner) quoted(kind tokenKind, what string) token {
	start, quote := s.at, s.text[s.at]
	for s.at++; s.at < len(s.text); s.at++ {
		switch s.text[s.at] {
		case '\\':
			s.at++
		case quote:
			if s.at+1 < len(s.text) && s.text[s.at+1] == quote {
				s.at++
				continue
			}
			s.at++
			return token{kind: kind, start: start, end: s.at}
		}
	}
	s.at = len(s.text)
	return token{kind: tokenBroken, text: what, start: start, end: s.at}
}

// heredoc reads $tag$text$tag$.
func (s *scanner) heredoc() (token, bool) {
	start := s.at
	end := start + 1
	for end < len(s.text) && isWordByte(s.text[end]) && s.text[end] != '$' {
		end++
	}
	if end >= len(s.text) || s.text[end] != '$' {
		return token{}, false
	}
	tag := s.text[start : end+1]
	closing := strings.Index(s.text[end+1:], tag)
	if closing < 0 {
		return token{}, false
	}
	s.at = end + 1 + closing + len(tag)
	return token{kind: tokenString, start: start, end: s.at}, true
}

func isWordByte(c byte) bool {
	return c == '_' || c == '$' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
