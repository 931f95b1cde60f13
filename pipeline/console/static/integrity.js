// How what was recorded is sealed: every hour of a trail, the heads of the chains, the key, and a verification now.
import { h, fill, note, field, check, badge, toast, copy, save, showFaults } from './dom.js';
import { t, word, number, bytes, time, minute, ago, duration, toInput, fromInput, iso, zoneName } from './text.js';
import { get, post, request, of } from './api.js';

const kinds = { none: '', sealed: '', empty: '', removed: '–', open: '', alarm: '!', fault: '×', differs: '≠' };
const shownDays = 14;
const uuid = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export async function render(main, { org, signal }) {
  let o = await get(of(org, 'integrity'), signal);
  const seconds = o.hour_seconds;
  // A row is a day of hours, or a minute of what tests and demos call hours.
  const row = seconds >= 1800 ? 86400 : 60 * seconds, rows = seconds >= 1800 ? Math.max(1, Math.min(shownDays, Math.floor(700 * seconds / 86400))) : 6;
  const fact = (name, value, text) => [h('dt', {}, name), h('dd', {}, h('span', {}, value), text && h('button', { class: 'plain', onclick: () => copy(text) }, t('copy')))];
  const legend = () => h('span', { class: 'legend' }, ['sealed', 'empty', 'open', 'removed', 'alarm', 'fault', 'differs'].map((s) => h('span', {}, h('i', { class: `hour s-${s}` }, kinds[s]), word('hour', s))), h('span', {}, h('i', { class: 'hour s-sealed gap' }), t('integrity.gap.legend')));

  const strips = o.chains.map((c) => strip(c.trail));
  const result = h('div', { 'aria-live': 'polite' });
  const keys = h('div', {});

  // strip is one trail: what is said of it, and its hours.
  function strip(trail) {
    const said = h('div', {}), grid = h('div', { class: 'hours', tabindex: '0', role: 'group', 'aria-label': t('integrity.hours', { trail: word('trail', trail) }) });
    const one = h('p', { class: 'hint chosen', 'aria-live': 'polite' });
    const later = h('button', { class: 'plain', onclick: () => move(1), 'aria-label': t('integrity.later') }, '›');
    const earlier = h('button', { class: 'plain', onclick: () => move(-1), 'aria-label': t('integrity.earlier') }, '‹');
    let back = 0, hours = [], at = -1;

    // end is the end of the last row: of this day where rows are days.
    const end = () => {
      const now = new Date();
      if (row !== 86400) return new Date(Math.ceil(now / (row * 1000)) * row * 1000);
      const day = fromInput(`${time(now).slice(0, 10)}T00:00:00`);
      return new Date(day.getTime() + 86400e3);
    };

    async function draw() {
      const to = new Date(end().getTime() - back * rows * row * 1000), from = new Date(to.getTime() - rows * row * 1000);
      hours = await get(`${of(org, 'integrity', 'hours')}?trail=${trail}&from=${iso(from)}&to=${iso(to)}`, signal);
      const groups = Map.groupBy(hours, (x) => (row === 86400 ? time(x.start).slice(0, 10) : minute(x.start).slice(5)));
      let i = 0;
      fill(grid, [...groups].map(([name, some]) => h('div', { class: 'row' }, h('span', { class: 'name' }, row === 86400 ? name.slice(5) : name.slice(6)),
        h('span', { class: 'cells', role: 'img', 'aria-label': `${name}: ${summary(some)}` }, some.map((x) => h('i', { class: `hour s-${x.state}${x.gaps?.length ? ' gap' : ''}`, 'data-at': i++, title: line(x) }, kinds[x.state]))))));
      at = Math.min(at, hours.length - 1);
      mark();
      later.disabled = back === 0;
    }

    const summary = (some) => Object.entries(Object.groupBy(some, (x) => x.state)).map(([state, all]) => `${word('hour', state)} ${number(all.length)}`).join(', ');
    const line = (x) => [`${time(x.start)} ${zoneName()}`, word('hour', x.state), x.rows && t('exports.n.rows', { n: number(x.rows) }), x.number && t('integrity.number', { n: number(x.number) }),
      ...(x.gaps ?? []).map((g) => t('integrity.gap', { from: time(g.from), to: time(g.to), by: g.by, reason: g.reason })), x.problem].filter(Boolean).join(' · ');

    function mark() {
      for (const e of grid.querySelectorAll('.at')) e.classList.remove('at');
      if (at < 0) return fill(one, t('integrity.choose'));
      grid.querySelector(`[data-at="${at}"]`)?.classList.add('at');
      fill(one, line(hours[at]));
    }
    const choose = (i) => { if (!hours.length) return; at = Math.max(0, Math.min(hours.length - 1, i)); mark(); };
    grid.addEventListener('click', (ev) => { if (ev.target.dataset.at) choose(Number(ev.target.dataset.at)); });
    grid.addEventListener('keydown', (ev) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: Math.round(row / seconds), ArrowUp: -Math.round(row / seconds), Home: -hours.length, End: hours.length }[ev.key];
      if (!step) return;
      ev.preventDefault();
      choose(at < 0 ? hours.findLastIndex((x) => x.state !== 'open' && x.state !== 'none') : at + step);
    });
    async function move(by) {
      back -= by;
      at = -1;
      await draw().catch((err) => toast(err.message, 'error'));
    }

    function say(c) {
      const state = c.alarm ? badge('bad', t('integrity.alarm')) : c.problem ? badge('bad', word('hour', 'fault')) : c.head ? badge('ok', t('integrity.sealed')) : badge('quiet', word('hour', 'none'));
      fill(said, h('h2', {}, word('trail', c.trail), ' ', state),
        c.alarm && note('error', t('integrity.alarm.hint', { at: time(c.alarm) })), c.problem && note('error', c.problem),
        c.head && h('dl', { class: 'facts' },
          fact(t('integrity.until'), `${time(c.sealed_until)} (${ago(c.sealed_until)})`), fact(t('integrity.first'), time(c.first)),
          fact(t('integrity.head'), t('integrity.head.is', { n: number(c.head.number), rows: number(c.head.rows), from: time(c.head.start), to: time(c.head.end).slice(11) })),
          fact(t('integrity.hash'), h('span', { class: 'code hash' }, c.head.hash), c.head.hash)));
    }
    return { trail, draw, say, element: h('section', { class: 'card', 'aria-label': word('trail', trail) }, said, h('div', { class: 'striphead' }, earlier, later, legend()), grid, one) };
  }

  function drawKeys() {
    fill(keys, o.keys.length ? o.keys.map((k, i) => h('dl', { class: 'facts' },
      fact(t(i ? 'integrity.key.old' : 'integrity.key'), h('span', { class: 'code hash' }, k.key), k.key), fact(t('integrity.fingerprint'), h('span', { class: 'code hash' }, k.fingerprint), k.fingerprint))) : h('p', { class: 'muted' }, t('integrity.key.none')),
    h('p', { class: 'hint' }, t('integrity.key.hint')));
  }

  // A verification.
  const box = h('div', {});
  const trails = o.chains.map((c) => check('trails', word('trail', c.trail), true, { value: c.trail }));
  const from = h('input', { type: 'datetime-local', step: 1 }), to = h('input', { type: 'datetime-local', step: 1 });
  const key = h('input', { spellcheck: 'false', autocomplete: 'off', maxlength: 500, placeholder: 'kansa+…' });
  const start = h('button', { class: 'primary', type: 'submit' }, t('integrity.verify'));
  const form = h('form', { novalidate: true, onsubmit: async (ev) => {
    ev.preventDefault();
    const chosen = trails.map((b) => b.querySelector('input')).filter((i) => i.checked).map((i) => i.value);
    const ask = { trails: chosen, key: key.value.trim() || undefined, from: from.value ? iso(fromInput(from.value)) : undefined, to: to.value ? iso(fromInput(to.value)) : undefined };
    const faults = [];
    if (!chosen.length) faults.push({ field: 'trails', text: t('exports.no.trail') });
    if (ask.from && ask.to && ask.from >= ask.to) faults.push({ field: 'to', text: t('range.order') });
    if (faults.length) return showFaults(form, box, { faults });
    start.disabled = true;
    try {
      o.verification = await post(of(org, 'integrity', 'verifications'), ask);
      showFaults(form, box);
      verified();
      again();
    } catch (err) {
      start.disabled = false;
      showFaults(form, box, err);
    }
  } }, h('div', { class: 'grid' },
    h('div', { class: 'field', 'data-field': 'trails', role: 'group', 'aria-label': t('exports.trails') }, h('span', { class: 'label' }, t('exports.trails')), h('div', { class: 'actions tight' }, trails)),
    field('from', `${t('range.start')} (${zoneName()})`, from, t('integrity.from.hint')), field('to', `${t('range.end')} (${zoneName()})`, to, t('exports.to.hint')),
    field('key', t('integrity.your.key'), key, t('integrity.your.key.hint'))),
  h('div', { class: 'actions' }, start));

  function verified() {
    const v = o.verification;
    start.disabled = v?.state === 'running';
    if (!v) return fill(result, h('p', { class: 'muted' }, t('integrity.never')));
    const share = v.total ? Math.floor(100 * v.done / v.total) : 0;
    fill(result, h('h3', {}, t('integrity.last'), ' ', v.state === 'running' ? badge('busy', t('integrity.running')) : v.state === 'failed' ? badge('warn', t('integrity.failed')) : badge(v.ok ? 'ok' : 'bad', t(v.ok ? 'integrity.holds' : 'integrity.not'))),
      v.state === 'running' && [h('progress', { value: v.done, max: v.total || 1, 'aria-label': t('integrity.running') }), h('p', { class: 'hint' }, `${number(share)} % · ${bytes(v.done)} / ${bytes(v.total)}`)],
      v.error && note('error', v.error),
      h('p', {}, [`${time(v.from)} – ${time(v.to)}`, (v.trails ?? []).map((n) => word('trail', n)).join(', '), v.state === 'done' && t('integrity.found', { hours: number(v.hours), rows: number(v.rows), bytes: bytes(v.total), seconds: duration(v.seconds) })].filter(Boolean).join(' · ')),
      v.faulty > 0 && h('ul', { class: 'faults' }, v.faults.map((f) => h('li', {}, h('b', { class: 'code' }, f.file), f.row ? ` ${t('integrity.row', { n: number(f.row) })}` : '', ': ', f.problem)), v.faulty > v.faults.length && h('li', {}, t('integrity.more.faults', { n: number(v.faulty - v.faults.length) }))),
      (v.notes ?? []).map((n) => h('p', { class: 'hint' }, n)),
      h('p', { class: 'hint' }, t('exports.by', { who: v.by, at: time(v.started) }), v.key && [' · ', h('span', { class: 'code hash' }, v.key)]));
  }

  // A proof.
  const id = h('input', { spellcheck: 'false', autocomplete: 'off', maxlength: 36, placeholder: '018f3a5e-…' });
  const proofBox = h('div', {});
  const proof = h('form', { novalidate: true, onsubmit: async (ev) => {
    ev.preventDefault();
    const value = id.value.trim();
    if (!uuid.test(value)) return showFaults(proof, proofBox, { faults: [{ field: 'event', text: t('integrity.id.wrong', { value }) }] });
    try {
      save(`${value}.proof`, await (await request('GET', `/api/v1/audit/events/${value}/proof?organization=${encodeURIComponent(org)}`)).blob());
      showFaults(proof, proofBox);
      toast(t('proof.saved'));
    } catch (err) {
      if (err.status === 409) err.faults = [{ field: 'event', text: t('proof.open') }];
      if (err.status === 404) err.faults = [{ field: 'event', text: t('detail.none') }];
      showFaults(proof, proofBox, err);
    }
  } }, proofBox, h('div', { class: 'inline' }, field('event', t('integrity.event'), id, t('integrity.event.hint')), h('button', { type: 'submit' }, t('proof'))));

  main.append(h('div', { class: 'pagehead' }, h('h1', {}, t('nav.integrity'), ' ', h('span', { class: 'muted' }, org))), ...strips.map((s) => s.element),
    h('section', { class: 'card' }, h('h2', {}, t('integrity.verify.title')), h('p', { class: 'hint' }, t('integrity.verify.hint')), box, form, result),
    h('section', { class: 'card' }, h('h2', {}, t('integrity.keys')), keys),
    h('section', { class: 'card' }, h('h2', {}, t('integrity.proof')), proof));

  let rounds = 0;
  async function look() {
    if (rounds) o = await get(of(org, 'integrity'), signal);
    drawKeys();
    verified();
    for (const s of strips) s.say(o.chains.find((c) => c.trail === s.trail));
    if (rounds++ % 10 === 0) await Promise.all(strips.map((s) => s.draw()));
  }
  const quick = () => (o.verification?.state === 'running' ? 1 : Math.min(30, Math.max(3, seconds)));
  let wake;
  const again = () => wake?.abort();
  (async () => {
    while (!signal.aborted) {
      wake = new AbortController();
      await new Promise((done) => {
        const timer = setTimeout(done, quick() * 1000);
        for (const s of [signal, wake.signal]) s.addEventListener('abort', () => { clearTimeout(timer); done(); });
      });
      if (!signal.aborted && !document.hidden) await look().catch((err) => { if (!signal.aborted) fill(result, note('error', err.message)); });
    }
  })();
  await look();
}
