package exporter

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kansa-audit/kansa/consumers"
)

// ErrMails means that an organization has used up its mails of the day.
var ErrMails = errors.New("no mails are left for today")

const prefixMails = "mails."

// mayMail counts a mail of an organization, or refuses it with [ErrMails]. The count is shared by all exporters.
func (x *Exporter) mayMail(ctx context.Context, organization string) error {
	if x.cfg.MailsPerDay <= 0 {
		return nil
	}
	today := x.cfg.Now().UTC().Format("20060102")
	for {
		key := prefixMails + organization
		entry, err := x.states.KV.Get(ctx, key)
		revision, sent := uint64(0), 0
		switch {
		case err == nil:
			revision = entry.Revision()
			if day, count, ok := strings.Cut(string(entry.Value()), " "); ok && day == today {
				sent, _ = strconv.Atoi(count)
			}
		case !errors.Is(err, jetstream.ErrKeyNotFound):
			return fmt.Errorf("count the mails of organization %s: %w", organization, err)
		}
		if sent >= x.cfg.MailsPerDay {
			if x.cfg.MailRefused != nil {
				x.cfg.MailRefused()
			}
			return fmt.Errorf("%w: organization %s has sent %d of %d (limits.mails_per_day); the next go out after midnight UTC", ErrMails, organization, sent, x.cfg.MailsPerDay)
		}
		_, err = consumers.Replace(ctx, x.states.KV, key, []byte(today+" "+strconv.Itoa(sent+1)), revision)
		if errors.Is(err, consumers.ErrReplaced) {
			continue
		}
		if err != nil {
			return fmt.Errorf("count the mails of organization %s: %w", organization, err)
		}
		return nil
	}
}
