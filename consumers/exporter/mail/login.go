package mail

import (
	"fmt"
	"slices"
	"strings"

	"github.com/wneessen/go-mail/smtp"
)

// mechanismError means that the server and Kansa have no way to log in together.
type mechanismError struct {
	offered, known []string
	remedy         string
}

func (e *mechanismError) Error() string {
	if len(e.offered) == 0 {
		return "the server offers no login on this connection"
	}
	return fmt.Sprintf("the server offers %s, and Kansa has %s", strings.Join(e.offered, ", "), strings.Join(e.known, ", "))
}

// login logs in by the best mechanism that the server offers, if a username is given. It does not leave the choice to
// go-mail, which does not see that a connection of ours is encrypted, and leaves out PLAIN and LOGIN.
func (s *Sender) login(session *smtp.Client, password, token string) error {
	if s.cfg.Username == "" {
		return nil
	}
	known := []struct {
		name string
		auth smtp.Auth
	}{
		{"SCRAM-SHA-256", smtp.ScramSHA256Auth(s.cfg.Username, password)},
		{"SCRAM-SHA-1", smtp.ScramSHA1Auth(s.cfg.Username, password)},
		{"PLAIN", smtp.PlainAuth("", s.cfg.Username, password, s.cfg.Host, false)},
		{"LOGIN", smtp.LoginAuth(s.cfg.Username, password, s.cfg.Host, false)},
	}
	if token != "" {
		known = known[:1]
		known[0].name, known[0].auth = xoauth2, smtp.XOAuth2Auth(s.cfg.Username, token)
	}
	_, list := session.Extension("AUTH")
	missing := &mechanismError{offered: strings.Fields(strings.ToUpper(list))}
	for _, m := range known {
		if slices.Contains(missing.offered, m.name) {
			return session.Auth(m.auth)
		}
		missing.known = append(missing.known, m.name)
	}
	switch {
	case len(missing.offered) == 0:
		missing.remedy = "leave username out, or choose the port on which the server has logins (587, or 465 with tls \"tls\")"
	case token == "" && slices.Contains(missing.offered, xoauth2):
		missing.remedy = "give an OAuth access token in token_file in place of the password"
	case token != "":
		missing.remedy = "give a password in password_file in place of the token"
	default:
		missing.remedy = "have the server offer one of these, or choose another server"
	}
	return missing
}

const xoauth2 = "XOAUTH2"
