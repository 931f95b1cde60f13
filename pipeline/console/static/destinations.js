// Where archives go: servers, buckets and mailboxes, when, and how deliveries are doing.
import { h, fill, note, field, check, badge, confirm, toast, showFaults, debounce } from './dom.js';
import { t, word, bytes, time, ago, duration, hours, toInput, fromInput, iso, weekday } from './text.js';
import { get, post, put, del, of } from './api.js';
import { address, go } from './route.js';

const kinds = { ok: 'ok', failing: 'bad', paused: 'warn', waiting: 'busy', manual: 'quiet', unreadable: 'bad' };
let known;
const facts = () => (known ??= fetch(new URL('facts.json', import.meta.url)).then((a) => a.json()));

export async function render(main, ctx) {
  const { org, signal, params, admin } = ctx;
  const all = await get(of(org, 'destinations'), signal);
  const name = params.get('name');
  const d = name && all.find((o) => o.name === name);
  if (d || (params.get('new') && admin)) return one(main, ctx, d || undefined, await facts());
  if (name) main.append(note('error', t('destinations.gone', { name })));
  main.append(h('div', { class: 'pagehead' }, h('h1', {}, t('nav.destinations')), admin && h('a', { class: 'button', href: address('destinations', { new: 1 }), 'data-nav': true }, t('destinations.new'))));
  if (!all.length) return main.append(h('div', { class: 'card empty' }, h('p', {}, t('destinations.none'))));
  main.append(h('section', { class: 'card' }, all.map((o) => h('article', { class: 'entry', 'aria-label': o.name },
    h('div', {}, h('h3', {}, h('a', { href: address('destinations', { name: o.name }), 'data-nav': true }, o.name), badge(kinds[o.state] ?? 'quiet', word('health', o.state)), badge('quiet', t('kind.' + kindOf(o)))),
      h('p', {}, place(o)), h('p', { class: 'hint' }, schedule(o.schedule), o.next_run && ` · ${t('destinations.next', { at: time(o.next_run).slice(0, 16), ago: ago(o.next_run) })}`), health(o)),
    h('div', { class: 'side' }, admin && actions(org, o))))));
}

const kindOf = (o) => (o.sftp ? 'sftp' : o.bucket ? 'bucket' : 'mail');

const place = (o) => h('span', { class: 'code' }, o.sftp ? `${o.sftp.user}@${o.sftp.host}:${o.sftp.port || 22} ${o.sftp.path ?? ''}` : o.bucket || (o.mail ?? []).join(', '));

function health(o) {
  const b = o.health ?? {};
  return [
    b.last_success && h('p', { class: 'hint' }, t('health.success', { at: time(b.last_success), ago: ago(b.last_success) }), b.last_file && [' · ', h('span', { class: 'code' }, b.last_file)]),
    o.problem && note('error', o.problem),
    b.failing_since && note('error', t('health.failing.since', { at: time(b.failing_since), ago: ago(b.failing_since), n: b.failures ?? 1 }), '\n', b.last_error),
    b.next && h('p', { class: 'hint' }, t('health.next', { at: time(b.next) })),
  ];
}

function actions(org, o) {
  const again = () => go(location.pathname + location.search, { replace: true });
  const act = (what, done) => async (ev) => {
    ev.target.disabled = true;
    try {
      await post(of(org, 'destinations', o.name, what));
      toast(done);
      again();
    } catch (err) {
      toast(err.message, 'error');
      ev.target.disabled = false;
    }
  };
  return o.paused ? h('button', { onclick: act('resume', t('destinations.resumed')) }, t('destinations.resume')) : h('button', { onclick: act('pause', t('destinations.paused')) }, t('destinations.pause'));
}

// schedule is one in words.
export function schedule(s) {
  if (!s) return t('schedule.manual');
  if (s.every) return t('schedule.every.words', { every: every(s.every) });
  const zone = s.time_zone || 'UTC';
  const m = /^(\d+) (\d+) (\d+) (\*|\d+) \* (\*|\?|[0-6])$/.exec(s.cron ?? '');
  if (!m) return t('schedule.cron.words', { cron: s.cron, zone });
  const at = `${m[3].padStart(2, '0')}:${m[2].padStart(2, '0')}`;
  if (m[4] === '*' && !/\d/.test(m[5])) return t('schedule.daily.words', { at, zone });
  if (m[4] === '*') return t('schedule.weekly.words', { at, zone, day: weekday(Number(m[5])) });
  if (!/\d/.test(m[5])) return t('schedule.monthly.words', { at, zone, day: m[4] });
  return t('schedule.cron.words', { cron: s.cron, zone });
}

const every = (text) => {
  const m = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$/.exec(text);
  if (!m || !text) return text;
  const seconds = (m[1] ?? 0) * 3600 + (m[2] ?? 0) * 60 + Number(m[3] ?? 0);
  return seconds % 86400 && seconds % 3600 === 0 ? hours(seconds / 3600) : duration(seconds);
};

const states = { ok: ['good', '✓'], warning: ['careful', '!'], failed: ['wrong', '✗'] };

const lists = ['key_exchanges', 'ciphers', 'macs', 'host_key_algorithms'];

// one is the form of a destination. It can be read, and changed after Edit.
function one(main, { org, signal, admin }, d, { algorithms, hidden }) {
  const isNew = !d;
  const managed = d?.meta.managed;
  const input = (props) => h('input', { autocomplete: 'off', spellcheck: 'false', ...props });
  const s = d?.sftp ?? {};
  const c = {
    name: input({ value: d?.name ?? '', maxlength: 64, readonly: !isNew }),
    host: input({ value: s.host ?? '', placeholder: 'sftp.example.com' }), port: input({ type: 'number', value: s.port ?? '', placeholder: '22', min: 1, max: 65535 }),
    user: input({ value: s.user ?? '', autocapitalize: 'none' }), path: input({ value: s.path ?? '', placeholder: '/incoming' }),
    password: input({ type: 'password', autocomplete: 'new-password', 'data-kept': !!s.password, placeholder: s.password ? t('secret.kept') : '' }),
    private_key: h('textarea', { spellcheck: 'false', 'data-kept': !!s.private_key, placeholder: s.private_key ? t('secret.kept') : '-----BEGIN OPENSSH PRIVATE KEY-----' }),
    passphrase: input({ type: 'password', autocomplete: 'new-password', 'data-kept': !!s.passphrase, placeholder: s.passphrase ? t('secret.kept') : '' }),
    host_keys: h('textarea', { spellcheck: 'false', placeholder: 'SHA256:…', value: (s.host_keys ?? []).join('\n') }),
    connect_timeout: input({ value: s.connect_timeout ?? '', placeholder: '15s' }), idle_timeout: input({ value: s.idle_timeout ?? '', placeholder: '1m' }), keepalive: input({ value: s.keepalive ?? '', placeholder: '15s' }),
    concurrency: input({ type: 'number', value: s.concurrency ?? '', placeholder: '64', min: 1, max: 256 }),
    bucket: input({ value: d?.bucket ?? '', placeholder: 's3://archives?region=eu-central-1' }),
    bucket_key_id: input({ value: d?.bucket_key_id ?? '', autocomplete: 'off' }),
    bucket_secret: input({ type: 'password', autocomplete: 'new-password', 'data-kept': !!d?.bucket_secret, placeholder: d?.bucket_secret ? t('secret.kept') : '' }),
    mail: h('textarea', { value: (d?.mail ?? []).join('\n'), placeholder: 'auditor@example.com' }),
    notify: h('textarea', { value: (d?.notify ?? []).join('\n'), placeholder: 'operations@example.com' }),
    cron: input({ value: d?.schedule?.cron ?? '0 15 1 * * *' }), every: input({ value: d?.schedule?.every ?? '1h' }), at: input({ type: 'time', value: '01:15' }),
    time_zone: input({ value: d?.schedule?.time_zone ?? '', placeholder: 'UTC', list: 'zones' }), period: input({ value: d?.schedule?.period ?? '', placeholder: '24h' }),
    since: input({ type: 'datetime-local', step: 1, value: toInput(d?.schedule?.since) }),
  };
  const kind = h('select', {}, ['sftp', 'bucket', 'mail'].map((k) => h('option', { value: k }, t('kind.' + k))));
  kind.value = d ? kindOf(d) : 'sftp';
  const trails = ['activity', 'access'].map((n) => check('trails', word('trail', n), !d?.trails || d.trails.includes(n), { value: n }));
  const choices = Object.fromEntries(lists.map((l) => [l, algorithms[l].map((a) => {
    const box = check(l, a.name, (s[l] ?? []).includes(a.name), { value: a.name });
    if (a.legacy) box.append(badge('warn', t('legacy')));
    else if (a.default) box.append(badge('quiet', t('default')));
    return box;
  })]));
  const when = h('select', {}, ['manual', 'daily', 'every', 'cron'].map((w) => h('option', { value: w }, t('schedule.' + w))));
  const daily = /^0 (\d+) (\d+) \* \* \*$/.exec(d?.schedule?.cron ?? '');
  when.value = !d ? 'daily' : !d.schedule ? 'manual' : d.schedule.every ? 'every' : daily ? 'daily' : 'cron';
  if (daily) c.at.value = `${daily[2].padStart(2, '0')}:${daily[1].padStart(2, '0')}`;

  const verify = h('select', {}, h('option', { value: '' }, t('verify.size')), h('option', { value: 'sha256' }, t('verify.sha256')));
  verify.value = s.verify === 'sha256' ? 'sha256' : '';
  const naming = h('select', {}, ['hidden', 'suffix', 'folder', 'none'].map((n) => h('option', { value: n }, t('naming.' + n))));
  naming.value = s.naming || 'hidden';
  const after = { checksum_file: check('checksum_file', t('sftp.checksum_file'), s.checksum_file), receipt: check('receipt', t('sftp.receipt'), s.receipt) };
  const ticked = (name) => after[name].querySelector('input').checked || undefined;

  const picked = (boxes) => boxes.map((b) => b.querySelector('input')).filter((i) => i.checked).map((i) => i.value);
  const lines = (control) => control.value.split(/[\n,;]+/).map((l) => l.trim()).filter(Boolean);
  const only = (o) => Object.fromEntries(Object.entries(o).filter(([, v]) => v !== undefined && v !== '' && !(Array.isArray(v) && !v.length)));

  function plan() {
    if (when.value === 'manual') return undefined;
    const [hour, min] = (c.at.value || '01:15').split(':').map(Number);
    // The cron that a daily run has names its own zone; what the form does not know stays.
    const { every: _every, cron: _cron, ...rest } = d?.schedule ?? {};
    return only({ ...rest, cron: when.value === 'daily' ? `0 ${min} ${hour} * * *` : when.value === 'cron' ? c.cron.value.trim() : undefined, every: when.value === 'every' ? c.every.value.trim() : undefined,
      time_zone: when.value === 'every' ? undefined : c.time_zone.value.trim(), period: c.period.value.trim(), since: c.since.value ? iso(fromInput(c.since.value)) : undefined });
  }

  function value() {
    const { meta: _m, health: _h, state: _s, next_run: _n, problem: _p, sftp: _f, mail: _ma, bucket: _b, bucket_key_id: _bk, bucket_secret: _bs, ...rest } = d ?? {};
    const v = only({ ...rest, organization: org, name: c.name.value.trim(), trails: picked(trails), notify: lines(c.notify), schedule: undefined });
    const secret = (name) => c[name].value || (s[name] ? hidden : undefined);
    if (kind.value === 'sftp') {
      v.sftp = { ...s, host: c.host.value.trim(), user: c.user.value.trim(), port: c.port.value ? Number(c.port.value) : undefined, path: c.path.value.trim() || undefined, password: secret('password'), private_key: secret('private_key'), passphrase: secret('passphrase'),
        host_keys: lines(c.host_keys), connect_timeout: c.connect_timeout.value.trim() || undefined, idle_timeout: c.idle_timeout.value.trim() || undefined, keepalive: c.keepalive.value.trim() || undefined, concurrency: c.concurrency.value ? Number(c.concurrency.value) : undefined };
      Object.assign(v.sftp, { naming: naming.value === 'hidden' ? undefined : naming.value, verify: verify.value || undefined, checksum_file: ticked('checksum_file'), receipt: ticked('receipt') });
      for (const l of lists) v.sftp[l] = picked(choices[l]).length ? picked(choices[l]) : undefined;
      if (!v.sftp.host_keys.length) delete v.sftp.host_keys;
    } else if (kind.value === 'bucket') Object.assign(v, only({ bucket: c.bucket.value.trim(), bucket_key_id: c.bucket_key_id.value.trim(), bucket_secret: c.bucket_secret.value || (d?.bucket_secret ? hidden : undefined) }));
    else v.mail = lines(c.mail);
    const p = plan();
    if (p) v.schedule = p;
    return v;
  }

  function check1(v) {
    const faults = [];
    const say = (f, text) => faults.push({ field: f, text });
    if (!/^[A-Za-z0-9_-]{1,64}$/.test(v.name ?? '')) say('name', t('destinations.name.wrong', { value: v.name ?? '' }));
    if (!v.trails?.length) say('trails', t('exports.no.trail'));
    if (v.sftp) {
      if (!v.sftp.host) say('host', t('field.empty', { field: t('sftp.host') }));
      if (!v.sftp.user) say('user', t('field.empty', { field: t('sftp.user') }));
      if (!v.sftp.password && !v.sftp.private_key && !v.sftp.password_file && !v.sftp.private_key_file) say('password', t('sftp.no.secret'));
      if (v.sftp.port !== undefined && !(Number.isInteger(v.sftp.port) && v.sftp.port >= 1 && v.sftp.port <= 65535)) say('port', t('sftp.port.wrong', { value: v.sftp.port }));
    } else if (v.mail) {
      if (!v.mail.length) say('mail', t('exports.no.mail'));
    } else if (!v.bucket) say('bucket', t('field.empty', { field: t('kind.bucket') }));
    for (const f of ['mail', 'notify']) for (const a of v[f] ?? []) if (!/^[^@]+@[^@\s]+$/.test(a)) say(f, t('mail.wrong', { value: a }));
    return faults;
  }

  const box = h('div', {});
  const report = h('div', {});
  const fields = h('fieldset', { disabled: !isNew });
  const part = (name, legend, ...inside) => h('fieldset', { class: 'card', 'data-part': name }, h('legend', { class: 'hidden' }, legend), h('h2', { 'aria-hidden': true }, legend), ...inside);
  const f = (name, label, hint) => field(name, t(label), c[name], hint && t(hint));
  const group = (name, label, boxes, cls) => h('div', { class: 'field', 'data-field': name, role: 'group', 'aria-label': label }, h('span', { class: 'label' }, label), h('div', { class: cls ?? 'actions tight' }, boxes));
  const parts = {
    sftp: part('sftp', 'SFTP', h('div', { class: 'grid' }, f('host', 'sftp.host'), f('port', 'sftp.port'), f('path', 'sftp.path', 'sftp.path.hint'), f('user', 'sftp.user'), f('password', 'sftp.password', 'sftp.secret.hint')),
      h('div', { class: 'field' }, f('host_keys', 'sftp.host_keys', 'sftp.host_keys.hint')),
      h('details', { open: !!s.private_key }, h('summary', {}, t('sftp.key')), h('div', { class: 'grid' }, f('private_key', 'sftp.private_key', 'sftp.secret.hint'), f('passphrase', 'sftp.passphrase'))),
      h('details', {}, h('summary', {}, t('sftp.algorithms')), h('p', { class: 'hint shown' }, t('sftp.algorithms.hint')), h('div', { class: 'grid' }, lists.map((l) => group(l, t('sftp.' + l), choices[l], 'algorithms')))),
      h('details', { open: !!(s.naming || s.verify || s.checksum_file || s.receipt) }, h('summary', {}, t('sftp.after')), h('div', { class: 'grid' }, field('naming', t('sftp.naming'), naming), field('verify', t('sftp.verify'), verify), group('receipt', t('sftp.receipts'), Object.values(after)))),
      h('details', {}, h('summary', {}, t('sftp.limits')), h('div', { class: 'grid' }, f('connect_timeout', 'sftp.connect_timeout'), f('idle_timeout', 'sftp.idle_timeout'), f('keepalive', 'sftp.keepalive'), f('concurrency', 'sftp.concurrency')))),
    bucket: part('bucket', t('kind.bucket'), f('bucket', 'bucket.url', 'bucket.hint'), h('div', { class: 'grid' }, f('bucket_key_id', 'bucket.key_id'), f('bucket_secret', 'bucket.secret', 'sftp.secret.hint'))),
    mail: part('mail', t('kind.mail'), f('mail', 'exports.mail', 'mail.hint')),
  };
  const words = h('p', {});
  const next = h('ul', { class: 'plainlist hint shown' });
  const whenFields = { daily: [f('at', 'schedule.at')], every: [f('every', 'schedule.every', 'schedule.every.hint')], cron: [f('cron', 'schedule.cron', 'schedule.cron.hint')] };
  const zone = h('div', {}, f('time_zone', 'zone'), h('datalist', { id: 'zones' }, (Intl.supportedValuesOf?.('timeZone') ?? []).map((z) => h('option', { value: z }))));
  const rest = [f('period', 'schedule.period', 'schedule.period.hint'), f('since', 'schedule.since', 'schedule.since.hint')];
  const planned = part('schedule', t('schedule'), h('div', { class: 'grid' }, field('when', t('schedule.when'), when), Object.values(whenFields), zone, rest), h('div', { 'aria-live': 'polite' }, words, next));

  const arrange = () => {
    for (const [k, p] of Object.entries(parts)) p.hidden = k !== kind.value;
    for (const [k, list] of Object.entries(whenFields)) for (const e of list) e.hidden = k !== when.value;
    zone.hidden = when.value === 'manual' || when.value === 'every';
    for (const e of rest) e.hidden = when.value === 'manual';
  };
  const tell = async () => {
    const p = plan();
    fill(words, schedule(p));
    fill(next);
    if (!p) return;
    const q = new URLSearchParams(only({ cron: p.cron, time_zone: p.time_zone, every: p.every }));
    const a = await get(`/console/schedule?${q}`, signal).catch(() => undefined);
    if (!a || signal.aborted) return;
    if (a.error) fill(next, h('li', { class: 'fault' }, a.error));
    else fill(next, a.runs.map((r) => h('li', {}, `${time(r)} · ${ago(r)}`)));
  };
  const tellSoon = debounce(250, tell);

  const edit = h('button', { type: 'button', onclick: () => {
    fields.disabled = false;
    buttons();
    c[isNew ? 'name' : kind.value === 'sftp' ? 'host' : kind.value].focus();
  } }, t('edit'));
  const submit = h('button', { class: 'primary', type: 'submit' }, t('destinations.save'));
  const cancel = h('button', { type: 'button', onclick: () => go(address('destinations', isNew ? {} : { name: d.name })) }, t('cancel'));
  const remove = !isNew && h('button', { type: 'button', class: 'danger', onclick: async () => {
    if (!(await confirm(t('destinations.remove'), t('destinations.remove.sure', { name: d.name }), t('destinations.remove')))) return;
    try {
      await del(of(org, 'destinations', d.name));
      toast(t('destinations.removed', { name: d.name }));
      go(address('destinations'));
    } catch (err) {
      toast(err.message, 'error');
    }
  } }, t('destinations.remove'));
  const test = !isNew && h('button', { type: 'button', onclick: async (ev) => {
    ev.target.disabled = true;
    fill(report, note('info', t('destinations.testing')));
    try {
      showReport(await post(of(org, 'destinations', d.name, 'test')), true);
    } catch (err) {
      fill(report, note('error', err.message));
    } finally {
      ev.target.disabled = false;
    }
  } }, t('destinations.test'));
  const bar = h('div', { class: 'actions sticky' });
  const buttons = () => fill(bar, fields.disabled ? [!managed && edit, test, !managed && remove] : [submit, cancel]);

  async function keep(force) {
    const v = value();
    const faults = check1(v);
    showFaults(form, box);
    if (faults.length) {
      fill(report);
      return showFaults(form, box, { faults });
    }
    submit.disabled = true;
    fill(report, note('info', t(force ? 'saving' : 'destinations.testing')));
    try {
      const saved = await put(`${of(org, 'destinations', v.name)}${force ? '?force=true' : ''}`, v, d?.meta.revision);
      if (saved.destination) {
        toast(t('saved.ok'));
        sessionStorage.setItem('kansa.report', JSON.stringify(saved.test ?? null));
        return go(address('destinations', { name: v.name }));
      }
      showReport(saved.test, false);
    } catch (err) {
      fill(report);
      if (err.status === 409 || err.status === 412) err.faults = [{ text: t('changed.meanwhile') }];
      showFaults(form, box, err);
    } finally {
      submit.disabled = false;
    }
  }

  function showReport(r, stored) {
    if (!r) return;
    const q = r.sftp;
    // A key that changed is nothing to accept with a click.
    const unknown = !r.ok && /unknown host key/.test(r.error ?? '') && q?.fingerprint;
    fill(report, h('section', { class: 'card', 'aria-label': t('report'), tabindex: '-1' }, h('h2', {}, t('report'), ' ', badge(r.ok ? 'ok' : 'bad', t(r.ok ? 'report.ok' : 'report.failed'))),
      h('ol', { class: 'steps' }, (r.steps ?? []).map((step) => h('li', { class: states[step.state]?.[0] }, h('span', { role: 'img', 'aria-label': word('report', step.state) }, states[step.state]?.[1] ?? '·'),
        h('div', {}, h('b', {}, word('step', step.name)), step.found && h('p', { class: step.ok ? 'hint shown' : 'fault' }, step.found)), h('span', { class: 'hint shown' }, step.took_ns ? duration(step.took_ns / 1e9) : '')))),
      q?.legacy?.length > 0 && note('error', t('report.legacy', { names: q.legacy.join(', ') })),
      q && h('dl', { class: 'facts' }, [['report.server', q.server_version], ['sftp.key_exchanges', q.key_exchange], ['sftp.host_key_algorithms', q.host_key], ['sftp.ciphers', q.cipher], ['sftp.macs', q.cipher && (q.mac || t('report.mac.none'))],
        ['sftp.path', q.path], ['report.free', q.path && (q.free_bytes === undefined || q.free_bytes === null ? t('report.unknown') : bytes(q.free_bytes))], ['report.rename', q.path && t(q.posix_rename ? 'yes' : 'no')], ['report.fsync', q.path && t(q.fsync ? 'yes' : 'no')]]
        .filter(([, v]) => v).map(([k, v]) => [h('dt', {}, t(k)), h('dd', {}, h('span', {}, v))])),
      q?.offers && h('details', {}, h('summary', {}, t('report.offers')), h('dl', { class: 'facts' }, lists.map((l) => [h('dt', {}, t('sftp.' + l)), h('dd', {}, h('span', { class: 'code' }, (q.offers[l] ?? []).join(', ')))]))),
      !stored && h('div', {}, note('info', t('report.not.saved')), h('div', { class: 'actions' },
        unknown && h('button', { type: 'button', class: 'primary', onclick: () => {
          c.host_keys.value = [...new Set([...lines(c.host_keys), unknown])].join('\n');
          keep(false);
        } }, t('report.accept', { key: unknown.slice(0, 19) + '…' })),
        h('button', { type: 'button', onclick: () => keep(true) }, t('report.force'))))));
    report.firstElementChild.scrollIntoView({ block: 'nearest' });
    report.firstElementChild.focus({ preventScroll: true });
  }

  fields.append(
    h('div', { class: 'card grid' }, f('name', 'destinations.name', isNew ? 'destinations.name.hint' : undefined), field('kind', t('kind'), kind), group('trails', t('exports.trails'), trails)),
    parts.sftp, parts.bucket, parts.mail, planned,
    h('fieldset', { class: 'card' }, f('notify', 'notify', 'notify.hint')));
  const form = h('form', { novalidate: true, onsubmit: (ev) => {
    ev.preventDefault();
    keep(false);
  } }, box, fields, bar, report);
  form.addEventListener('change', () => { arrange(); tellSoon(); });
  form.addEventListener('input', tellSoon);

  main.append(h('div', { class: 'pagehead' }, h('h1', {}, h('a', { href: address('destinations'), 'data-nav': true }, t('nav.destinations')), ' / ', isNew ? t('destinations.new') : d.name), !isNew && badge(kinds[d.state] ?? 'quiet', word('health', d.state)), !isNew && admin && actions(org, d)));
  if (!isNew) {
    const told = health(d).filter(Boolean);
    if (told.length) main.append(h('section', { class: 'card', 'aria-label': t('health') }, told));
  }
  if (managed) main.append(note('info', t('managed')));
  main.append(form);
  if (!isNew) for (const e of form.querySelectorAll('input, textarea')) if (!e.value && !e.hasAttribute('data-kept')) e.closest('.field')?.classList.add('unset');
  arrange();
  tell();
  if (admin) buttons();
  if (!isNew) {
    const said = JSON.parse(sessionStorage.getItem('kansa.report') ?? 'null');
    sessionStorage.removeItem('kansa.report');
    if (said) showReport(said, true);
    main.append(h('p', { class: 'hint' }, t('changed.last', { who: d.meta.by ?? '–', at: time(d.meta.updated) })));
  } else c.name.focus();
}
