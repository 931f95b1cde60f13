// How the pipeline is doing: what its checks found, and what its metrics say.
import { h, fill, note, badge, toast, every } from './dom.js';
import { deadLetters } from './deadletters.js';
import { t, word, number, bytes, duration, time } from './text.js';

export async function render(main, { signal, who, admin }) {
  const state = h('div', {}), tiles = h('div', {}), lags = h('div', {});
  let before;
  const dead = admin && deadLetters(who.organization ?? '', signal);
  main.append(h('div', { class: 'pagehead' }, h('h1', {}, t('nav.system'))));
  if (who.organization) { // what the whole is doing is the operator's
    if (!dead) return main.append(note('info', t('dead.admins')));
    main.append(dead.card);
    return every(10, signal, () => dead.look().catch((err) => { if (!signal.aborted) toast(err.message, 'error'); }));
  }
  main.append(h('section', { class: 'card', 'aria-label': t('system.health') }, state), tiles);
  if (dead) {
    main.append(dead.card);
    every(10, signal, () => dead.look().catch((err) => { if (!signal.aborted) toast(err.message, 'error'); }));
  }
  main.append(lags);

  async function look() {
    const [ready, text] = await Promise.all([
      fetch('/readyz', { headers: { Accept: 'application/json' }, signal }).then((a) => a.json()), fetch('/metrics', { signal }).then((a) => a.text()),
    ]);
    const m = metrics(text), now = Date.now();
    const one = (name) => m.get(name)?.[0]?.value;
    const by = (name, label) => Object.fromEntries((m.get(name) ?? []).map((s) => [s.labels[label], s.value]));
    const stored = one('kansa_writer_events_stored_total');
    const rate = before && stored !== undefined ? Math.max(0, (stored - before.stored) / ((now - before.now) / 1000)) : undefined;
    before = { stored, now };
    fill(state, h('h2', {}, t('system.health'), ' ', badge(!ready.ready ? 'bad' : ready.findings.length ? 'warn' : 'ok', t(!ready.ready ? 'system.failing' : ready.findings.length ? 'system.warning' : 'system.ok'))),
      ready.findings.length ? h('ul', { class: 'stack plainlist' }, ready.findings.map((f) => h('li', {}, badge(f.severity === 'failing' ? 'bad' : 'warn', word('severity', f.severity)), ' ', h('b', {}, `${f.role} · ${f.check}`), ' ', f.reason, f.remedy && h('div', { class: 'muted' }, t('system.remedy'), ' ', f.remedy)))) : h('p', { class: 'muted' }, t('system.nothing')));
    const queue = by('kansa_consumer_lag_messages', 'consumer');
    const doing = {
      writer: [rate !== undefined && t('system.per.second', { n: number(rate) }), one('kansa_writer_lag_seconds') !== undefined && t('system.behind', { n: duration(one('kansa_writer_lag_seconds')) })],
      rollup: [one('kansa_rollup_lag_seconds') !== undefined && t('system.since.sealed', { n: duration(one('kansa_rollup_lag_seconds')) })],
      exporter: [queue.exporter !== undefined && t('system.waiting', { n: number(queue.exporter) })],
    };
    state.append(h('ul', { class: 'roles' }, (ready.roles ?? []).map((r) => h('li', {}, badge({ ok: 'ok', warning: 'warn' }[r.state] ?? 'bad', word('severity', r.state)), h('b', {}, r.role), h('span', { class: 'muted' }, (doing[r.role] ?? []).filter(Boolean).join(' · '))))));
    const tile = (value, label, bad) => value !== undefined && h('div', { class: `tile ${bad ? 'bad' : ''}` }, h('b', {}, value), h('span', {}, label));
    const when = (v, f) => (v === undefined ? undefined : f(v));
    const letters = one('kansa_dead_letters'), blocked = one('kansa_rollup_blocked_trails'), deliveries = by('kansa_exporter_deliveries_total', 'result');
    fill(tiles, h('div', { class: 'tiles' },
      tile(when(rate, (v) => t('system.per.second', { n: number(v) })), t('system.rate')), tile(when(stored, number), t('system.stored')),
      tile(when(one('kansa_writer_lag_seconds'), duration), t('system.lag'), one('kansa_writer_lag_seconds') > 60),
      tile(when(one('kansa_rollup_lag_seconds'), duration), t('system.rollup')), tile(when(one('kansa_rollup_done_until_timestamp_seconds'), (v) => (v > 0 ? time(v * 1000).slice(5, 16) : '–')), t('system.sealed')),
      tile(when(blocked, number), t('system.blocked'), blocked > 0), tile(when(letters, number), t('system.dead'), letters > 0),
      tile(when(deliveries.delivered, number), t('system.delivered')), tile(when(deliveries.failed, number), t('system.delivery.failed'), deliveries.given_up > 0),
      tile(when(one('kansa_writer_insert_errors_total'), number), t('system.insert.errors'), one('kansa_writer_insert_errors_total') > 0)),
    letters > 0 && !admin && note('info', t('system.dead.hint')));
    const streams = by('kansa_stream_bytes', 'stream'), most = by('kansa_stream_max_bytes', 'stream'), messages = by('kansa_stream_messages', 'stream'), lag = by('kansa_consumer_lag_messages', 'consumer'), disks = by('kansa_disk_free_bytes', 'directory');
    const table = (title, heads, rows) => rows.length > 0 && h('section', { class: 'card' }, h('h2', {}, title), h('div', { class: 'scroll' }, h('table', {}, h('thead', {}, h('tr', {}, heads.map((x) => h('th', { scope: 'col' }, x)))), h('tbody', {}, rows.map((r) => h('tr', {}, r.map((v, i) => h(i ? 'td' : 'th', i ? {} : { scope: 'row' }, v))))))));
    fill(lags,
      table(t('system.streams'), [t('system.stream'), t('system.messages'), t('system.size'), t('system.full')], Object.keys(streams).sort().map((s) => [s, number(messages[s] ?? 0), bytes(streams[s]), most[s] ? h('progress', { value: streams[s] / most[s], max: 1, 'aria-label': `${number(Math.round(streams[s] / most[s] * 100))} %` }) : '–'])),
      table(t('system.consumers'), [t('system.consumer'), t('system.lag.messages')], Object.keys(lag).sort().map((c) => [c, number(lag[c])])),
      table(t('system.disks'), [t('system.disk'), t('system.free')], Object.keys(disks).sort().map((d) => [d, bytes(disks[d])])));
  }
  await every(3, signal, () => look().catch((err) => { if (!signal.aborted) fill(state, note('error', err.message)); }));
}

// metrics reads the text form of Prometheus.
export function metrics(text) {
  const all = new Map();
  for (const line of text.split('\n')) {
    const m = /^(kansa_\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!m) continue;
    const labels = Object.fromEntries([...(m[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((l) => [l[1], l[2]]));
    if (!all.has(m[1])) all.set(m[1], []);
    all.get(m[1]).push({ labels, value: Number(m[3]) });
  }
  return all;
}
