// The search of events: what is asked stands in the address, so that it can be shared and gone back to.
import { h, fill, note, field, check, menu, dialog, toast, copy, save, badge, debounce } from './dom.js';
import { t, word, number, time, iso, toInput, fromInput, zoneName, ago } from './text.js';
import { get, request } from './api.js';
import { address, go } from './route.js';
import { chart } from './chart.js';
import { changes } from './diff.js';

// Filters of the API, and where an event has what they are compared with.
const filters = {
  trail: (e) => e.trail, event: (e) => e.event, action: (e) => e.action, outcome: (e) => e.outcome ?? 'success', source: (e) => e.source,
  userId: (e) => e.actor?.id, target: (e) => e.target?.type, targetId: (e) => e.target?.id, appId: (e) => e.app_id, ip: (e) => e.context?.ip, dataType: (e) => e.data_type,
};
const fixed = { trail: ['activity', 'access'], outcome: ['success', 'failure', 'denied', 'unknown'] };

const ranges = { '15m': 900, '1h': 3600, '24h': 86400, '7d': 7 * 86400, '30d': 30 * 86400, '1y': 365 * 86400, all: 0 };
const usual = '24h';

const person = (p) => p && (p.name || p.id || p.type);
const columns = {
  time: (e) => h('time', { datetime: e.occurred_at, title: e.occurred_at }, time(e.occurred_at)),
  recorded: (e) => h('time', { datetime: e.recorded_at, title: e.recorded_at }, time(e.recorded_at)),
  trail: (e) => word('trail', e.trail),
  event: (e) => h('span', { class: 'code' }, e.event),
  action: (e) => e.action,
  outcome: (e) => outcome(e),
  actor: (e) => person(e.actor),
  target: (e) => person(e.target),
  source: (e) => e.source,
  ip: (e) => e.context?.ip,
  app: (e) => e.app_id,
  description: (e) => e.description,
  data_type: (e) => e.data_type,
  location: (e) => e.context?.location,
  id: (e) => h('span', { class: 'code' }, e.id),
};
const usualColumns = ['time', 'outcome', 'event', 'actor', 'target', 'description'];

const outcome = (e) => badge({ success: 'quiet', failure: 'bad', denied: 'warn', unknown: 'warn' }[e.outcome ?? 'success'], t('outcome.' + (e.outcome ?? 'success')));

const store = {
  read(name, fallback) {
    try {
      return JSON.parse(localStorage.getItem('kansa.' + name)) ?? fallback;
    } catch {
      return fallback;
    }
  },
  write: (name, value) => localStorage.setItem('kansa.' + name, JSON.stringify(value)),
};

const pageSize = 100;
const mostLive = 500;

export async function render(main, { org, signal, params }) {
  const asked = Object.fromEntries([...params].filter(([k, v]) => (filters[k] || k === 'text') && v));
  const custom = params.get('start') || params.get('end');
  const range = custom ? 'custom' : ranges[params.get('range')] === undefined ? usual : params.get('range');
  const state = { ...asked, ...(custom ? { start: params.get('start'), end: params.get('end') } : range === usual ? {} : { range }) };
  let shownColumns = store.read('columns', usualColumns).filter((c) => columns[c]);
  if (!shownColumns.length) shownColumns = usualColumns;
  const to = (values) => go(address('events', { ...state, ...values }));

  // The time is set once a search, so that its pages fit together.
  const now = new Date();
  let from = custom ? params.get('start') : range === 'all' ? undefined : iso(new Date(now - ranges[range] * 1000));
  const until = custom ? params.get('end') : iso(now);
  const question = (more, times = true) => {
    const q = new URLSearchParams({ organization: org, ...asked });
    if (times && from) q.set('start', from);
    if (times && until) q.set('end', until);
    for (const [k, v] of Object.entries(more ?? {})) q.set(k, v);
    return q.toString();
  };

  // The bar of what is asked.
  const search = h('input', { type: 'search', class: 'search', placeholder: t('search'), 'aria-label': t('search'), value: asked.text ?? '', autocomplete: 'off', spellcheck: 'false', 'aria-keyshortcuts': '/' });
  const form = h('form', { role: 'search', class: 'searchform', onsubmit: (ev) => {
    ev.preventDefault();
    to({ text: search.value.trim() });
  } }, search);
  search.addEventListener('search', () => { if (!search.value && asked.text) to({ text: '' }); });

  const chips = h('div', { class: 'chips' }, Object.entries(asked).map(([k, v]) => h('span', { class: 'chip' },
    h('span', {}, h('b', {}, t('filter.' + k)), ' ', k === 'trail' || k === 'outcome' ? word(k, v) : v),
    h('button', { class: 'plain', 'aria-label': t('filter.remove', { name: t('filter.' + k) }), onclick: () => to({ [k]: '' }) }, '×'))),
  Object.keys(asked).length > 1 && h('button', { class: 'plain', onclick: () => go(address('events', { range: state.range, start: state.start, end: state.end })) }, t('filter.clear')));

  const liveButton = h('button', { class: 'live', 'aria-pressed': 'false', 'aria-keyshortcuts': 'l', onclick: () => live() }, h('span', { class: 'dot', 'aria-hidden': true }), t('live'));

  const count = h('p', { class: 'count', role: 'status' });
  const box = h('div', { class: 'chart' });
  const table = h('table', { class: 'events' });
  const more = h('div', { class: 'more' });
  const detail = h('aside', { class: 'detail', 'aria-label': t('detail'), hidden: true, tabindex: '-1' });
  const faults = h('div', {});

  add(main,
    h('h1', { class: 'hidden' }, t('nav.events')),
    h('div', { class: 'bar' }, form, addFilter(asked, org, to, signal), chooseTime(range, state, to), liveButton,
      h('span', { class: 'spacer' }), saved(org, state), chooseColumns(), exportMenu()),
    chips, faults, box, h('div', { class: 'listhead' }, count),
    h('div', { class: 'split' }, h('div', { class: 'list' }, h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': t('nav.events') }, table), more), detail));

  let events = [];
  let chosen = -1;
  let following;
  let endChart;

  function head() {
    return h('thead', {}, h('tr', {}, shownColumns.map((c) => h('th', { scope: 'col', class: 'c-' + c }, t('column.' + c)))));
  }

  function row(e, fresh) {
    const open = () => show(events.indexOf(e));
    const tr = h('tr', { class: fresh && 'fresh', onclick: (ev) => { if (!getSelection().toString()) open(ev); } }, shownColumns.map((c, i) => {
      const value = columns[c](e);
      return h('td', { class: `c-${c}${value ? '' : ' none'}`, 'data-label': t('column.' + c) }, i === 0 ? h('button', { class: 'open', 'aria-label': t('detail.open', { event: e.event, time: time(e.occurred_at) }), onclick: (ev) => { ev.stopPropagation(); open(); } }, value ?? '–') : value ?? h('span', { class: 'muted' }, '–'));
    }));
    tr.dataset.id = e.id;
    return tr;
  }

  const body = h('tbody', {});
  function draw() {
    fill(table, h('caption', { class: 'hidden' }, t('nav.events')), head(), fill(body, events.map((e) => row(e))));
    mark();
  }

  function mark() {
    [...body.children].forEach((tr, i) => {
      if (i === chosen) tr.setAttribute('aria-selected', 'true');
      else tr.removeAttribute('aria-selected');
    });
    body.children[chosen]?.scrollIntoView({ block: 'nearest' });
  }

  async function load(offset) {
    const page = await get(`/api/v1/audit/events?${question({ limit: pageSize, offset })}`, signal);
    const known = new Set(events.map((e) => e.id));
    const fresh = page.events.filter((e) => !known.has(e.id));
    events.push(...fresh);
    if (offset === 0) draw();
    else add(body, fresh.map((e) => row(e)));
    fill(more, page.more && h('button', { onclick: async (ev) => {
      ev.target.disabled = true;
      try {
        await load(offset + pageSize);
      } catch (err) {
        if (!signal.aborted) toast(err.message, 'error');
        ev.target.disabled = false;
      }
    } }, t('more')));
    if (!events.length) empty();
  }

  function empty() {
    fill(more, h('div', { class: 'empty' }, h('p', {}, t(Object.keys(asked).length ? 'empty.filtered' : 'empty')),
      h('div', { class: 'actions center' },
        range !== 'all' && h('button', { onclick: () => to({ range: 'all', start: '', end: '' }) }, t('empty.all')),
        Object.keys(asked).length > 0 && h('button', { onclick: () => go(address('events', { range: state.range, start: state.start, end: state.end })) }, t('filter.clear')))));
  }

  async function histogram() {
    if (range === 'all') {
      // Where the first events are is found with wide steps first.
      const wide = await get(`/api/v1/audit/histogram?${question({ start: '1990-01-01T00:00:00Z', bars: 450 })}`, signal);
      const first = wide.bars[0];
      from = iso(first ? new Date(Math.max(Date.parse(first.start), 0)) : new Date(now - 86400e3));
    }
    const bars = Math.max(20, Math.min(120, Math.round(box.clientWidth / 9)));
    const answer = await get(`/api/v1/audit/histogram?${question({ bars })}`, signal);
    const total = answer.bars.reduce((n, b) => n + b.events, 0);
    fill(count, h('b', {}, number(total)), ' ', t('events.found', { n: '' }).trim(), h('span', { class: 'muted' }, ` · ${span(answer)} (${zoneName()})`));
    endChart?.();
    endChart = await chart(box, answer, (a, b) => to({ start: iso(a), end: iso(b), range: '' }), signal);
  }

  const span = (a) => `${time(a.start).slice(0, 16)} – ${time(a.end).slice(0, 16)}`;

  // The detail of an event.
  function show(i, { focus = true } = {}) {
    if (i < 0 || i >= events.length) return;
    chosen = i;
    mark();
    open(events[i], focus);
  }

  function open(e, focus) {
    const q = new URLSearchParams(location.search);
    q.set('id', e.id);
    history.replaceState(null, '', `${location.pathname}?${q}`);
    detail.hidden = false;
    detail.closest('.split').classList.add('open');
    fill(detail, ...describe(e));
    detail.scrollTop = 0;
    mark(); // the list is narrower now
    if (focus) detail.focus({ preventScroll: true });
  }

  function close() {
    detail.hidden = true;
    detail.closest('.split').classList.remove('open');
    const q = new URLSearchParams(location.search);
    q.delete('id');
    history.replaceState(null, '', `${location.pathname}?${q}`);
    body.children[chosen]?.querySelector('button.open')?.focus();
  }

  function describe(e) {
    const line = (label, value, filter) => value !== undefined && value !== '' && value !== null && [
      h('dt', {}, label), h('dd', {}, h('span', {}, value), filter && filters[filter](e) && h('button', { class: 'plain filter', title: t('filter.by'), 'aria-label': t('filter.by.this', { name: t('filter.' + filter), value: filters[filter](e) }), onclick: () => to({ [filter]: filters[filter](e) }) }, '+'))];
    const party = (p) => p && [p.name, p.id && h('span', { class: 'code muted' }, ' ', p.id), p.type && h('span', { class: 'muted' }, ' ', p.type)];
    const name = `${e.event} ${time(e.occurred_at)}`;
    return [
      h('div', { class: 'detailhead' }, h('div', {}, h('h2', {}, h('span', { class: 'code' }, e.event)), h('p', { class: 'muted' }, outcome(e), ' ', time(e.occurred_at, { ms: true }), ' · ', ago(e.occurred_at))),
        h('button', { class: 'plain close', 'aria-label': t('close'), onclick: close }, '×')),
      e.differs_from_sealed && note('error', t('detail.differs.' + e.differs_from_sealed)),
      e.description && h('p', { class: 'description' }, e.description),
      h('div', { class: 'actions' },
        h('button', { onclick: (ev) => proof(e, ev.target) }, t('proof')),
        h('button', { onclick: () => copy(new URL(address('events', { id: e.id, range: 'all' }), location.href).href) }, t('copy.link')),
        h('button', { onclick: () => copy(JSON.stringify(e, null, 2)) }, t('copy.json'))),
      (e.before !== undefined || e.after !== undefined) && h('section', {}, h('h3', {}, t('diff')), changes(e.before, e.after)),
      h('dl', { class: 'facts' },
        line(t('column.actor'), party(e.actor), 'userId'), line(t('column.target'), party(e.target), 'targetId'),
        line(t('filter.target'), e.target?.type, 'target'), line(t('filter.event'), h('span', { class: 'code' }, e.event), 'event'),
        line(t('column.action'), e.action, 'action'), line(t('column.outcome'), t('outcome.' + (e.outcome ?? 'success')), 'outcome'),
        line(t('column.trail'), word('trail', e.trail), 'trail'), line(t('column.source'), e.source, 'source'), line(t('column.app'), e.app_id, 'appId'),
        line(t('column.ip'), e.context?.ip, 'ip'), line(t('column.location'), e.context?.location), line(t('detail.agent'), e.context?.user_agent),
        line(t('detail.session'), e.context?.session_id && h('span', { class: 'code' }, e.context.session_id)), line(t('detail.trace'), e.context?.trace_id && h('span', { class: 'code' }, e.context.trace_id)),
        Object.entries(e.attributes ?? {}).sort().map(([k, v]) => line(h('span', { class: 'code' }, k), v)),
        line(t('column.data_type'), e.data_type, 'dataType'),
        line(t('column.recorded'), `${time(e.recorded_at, { ms: true })}`), line(t('detail.place'), h('span', { class: 'code' }, `${e.stream_seq}.${e.batch_index}`)), line(t('column.id'), h('span', { class: 'code' }, e.id))),
      e.data !== undefined && h('details', { open: true }, h('summary', {}, t('column.data')), json(e.data, `${name} data`)),
      h('details', {}, h('summary', {}, t('detail.json')), json(e, name)),
    ];
  }

  const json = (value, label) => h('pre', { class: 'json', tabindex: '0', 'aria-label': label }, JSON.stringify(value, null, 2));

  async function proof(e, button) {
    button.disabled = true;
    try {
      const answer = await request('GET', `/api/v1/audit/events/${e.id}/proof?organization=${encodeURIComponent(org)}`);
      save(`${e.id}.proof`, await answer.blob());
      toast(t('proof.saved'));
    } catch (err) {
      toast(err.status === 409 ? t('proof.open') : err.message, err.status === 409 ? 'info' : 'error');
    } finally {
      button.disabled = false;
    }
  }

  // What comes in from now on.
  function live() {
    if (following) {
      following.close();
      following = undefined;
      liveButton.setAttribute('aria-pressed', 'false');
      return;
    }
    liveButton.setAttribute('aria-pressed', 'true');
    following = new EventSource(`/api/v1/audit/tail?${question({}, false)}`);
    let waiting = [];
    const take = () => {
      const fresh = waiting.filter((e) => !events.some((o) => o.id === e.id)).reverse();
      waiting = [];
      if (!fresh.length) return;
      const at = events[chosen];
      events.unshift(...fresh);
      body.prepend(...fresh.map((e) => row(e, true)));
      for (; events.length > mostLive; events.pop()) body.lastElementChild.remove();
      chosen = events.indexOf(at);
      if (more.querySelector('.empty')) fill(more);
      fill(count, h('b', {}, number(events.length)), ' ', t('live.shown'));
    };
    const soon = debounce(150, take);
    following.onmessage = (m) => {
      waiting.push(JSON.parse(m.data));
      if (waiting.length >= mostLive) take();
      else soon();
    };
    following.onopen = () => liveButton.classList.remove('lost');
    following.onerror = () => liveButton.classList.add('lost');
  }
  signal.addEventListener('abort', () => following?.close());

  function chooseColumns() {
    const list = h('div', { class: 'stack' });
    const fillList = () => fill(list, Object.keys(columns).map((c) => check(c, t('column.' + c), shownColumns.includes(c), { onchange: (ev) => {
      shownColumns = ev.target.checked ? [...shownColumns, c] : shownColumns.filter((o) => o !== c);
      if (!shownColumns.length) shownColumns = ['time'];
      shownColumns.sort((a, b) => Object.keys(columns).indexOf(a) - Object.keys(columns).indexOf(b));
      store.write('columns', shownColumns);
      draw();
    } })), h('button', { onclick: () => {
      shownColumns = usualColumns;
      localStorage.removeItem('kansa.columns');
      fillList();
      draw();
    } }, t('columns.reset')));
    fillList();
    return menu(t('columns'), list, { class: 'menu right' });
  }

  function exportMenu() {
    const link = (format) => h('a', { class: 'item', href: '#', onclick: (ev) => { ev.currentTarget.href = `/api/v1/audit/logs?${question({ format, ...(format === 'csv' || format === 'tsv' ? { spreadsheet_safe: 'true' } : {}) })}`; }, download: `audit-${org}.${format}` }, t('export.as', { format: format.toUpperCase() }));
    return menu(t('export'), [
      h('button', { class: 'item', onclick: () => go(address('exports', { start: from, end: until, trail: asked.trail })) }, t('export.archive')),
      h('p', { class: 'hint' }, t('export.archive.hint')),
      link('csv'), link('tsv'), link('ndjson'), h('p', { class: 'hint' }, t('export.hint')),
    ], { class: 'menu right' });
  }

  const onKey = (ev) => {
    if (ev.ctrlKey || ev.metaKey || ev.altKey || document.querySelector('dialog[open]')) return;
    if (ev.key === 'Escape' && !detail.hidden && !document.querySelector('details.menu[open]')) return close();
    if (ev.target.closest?.('input, select, textarea')) return;
    if (ev.key === '/') {
      ev.preventDefault();
      search.focus();
      search.select();
    } else if (ev.key === 'j' || ev.key === 'k') {
      const i = Math.max(0, Math.min(events.length - 1, chosen + (ev.key === 'j' ? 1 : -1)));
      if (detail.hidden) {
        chosen = i;
        mark();
        body.children[i]?.querySelector('button.open')?.focus();
      } else show(i);
    } else if (ev.key === 'l') live();
  };
  document.addEventListener('keydown', onKey);
  signal.addEventListener('abort', () => document.removeEventListener('keydown', onKey));

  draw();
  fill(count, t('loading'));
  const fail = (err) => {
    if (signal.aborted) return;
    fill(faults, note('error', err.message));
    fill(count);
  };
  await Promise.all([load(0).catch(fail), histogram().catch(fail), openFromAddress().catch(fail)]);
  if (params.get('live')) live();

  async function openFromAddress() {
    const id = params.get('id');
    if (!id) return;
    try {
      open(await get(`/api/v1/audit/events/${encodeURIComponent(id)}?organization=${encodeURIComponent(org)}`, signal), true);
    } catch (err) {
      if (!signal.aborted) toast(err.status === 404 ? t('detail.none') : err.message, 'error');
    }
  }
}

function add(main, ...children) {
  main.append(...children.filter(Boolean));
}

// addFilter offers a filter and, for some, what was seen.
function addFilter(asked, org, to, signal) {
  let seen;
  const name = h('select', {}, Object.keys(filters).map((f) => h('option', { value: f }, t('filter.' + f))));
  name.value = 'event';
  const place = h('div', {});
  let value;
  const suggest = async () => {
    const f = name.value;
    if (fixed[f]) {
      value = h('select', {}, fixed[f].map((v) => h('option', { value: v }, word(f, v))));
    } else {
      const list = h('datalist', { id: 'seen' });
      value = h('input', { list: 'seen', autocomplete: 'off', spellcheck: 'false', required: true, maxlength: 4096 });
      if (['event', 'source', 'action'].includes(f)) {
        seen ??= get(`/api/v1/audit/catalogue?organization=${encodeURIComponent(org)}`, signal).catch(() => []);
        seen.then((all) => fill(list, [...new Set(all.map((s) => s[f]))].map((v) => h('option', { value: v }))));
      }
      fill(place, field('value', t('filter.value'), value), list);
      value.value = asked[f] ?? '';
      return;
    }
    fill(place, field('value', t('filter.value'), value));
    value.value = asked[f] ?? fixed[f][0];
  };
  name.addEventListener('change', suggest);
  const m = menu(t('filter.add'), h('form', { class: 'stack', onsubmit: (ev) => {
    ev.preventDefault();
    if (value.value.trim()) to({ [name.value]: value.value.trim() });
    else value.focus();
  } }, field('filter', t('filter'), name), place, h('button', { class: 'primary', type: 'submit' }, t('filter.apply'))));
  m.addEventListener('toggle', () => { if (m.open) suggest().then(() => value.focus()); });
  return m;
}

function chooseTime(range, state, to) {
  const label = range === 'custom' ? `${state.start ? toInput(state.start).replace('T', ' ').slice(0, 16) : '…'} – ${state.end ? toInput(state.end).replace('T', ' ').slice(0, 16) : '…'}` : t('range.' + range);
  const start = h('input', { type: 'datetime-local', step: 1, value: toInput(state.start) });
  const end = h('input', { type: 'datetime-local', step: 1, value: toInput(state.end) });
  const wrong = h('p', { class: 'fault', role: 'alert' });
  return menu(h('span', {}, label), [
    h('div', { class: 'presets' }, Object.keys(ranges).map((r) => h('button', { 'aria-pressed': String(r === range), onclick: () => to({ range: r === usual ? '' : r, start: '', end: '' }) }, t('range.' + r)))),
    h('form', { class: 'stack', novalidate: true, onsubmit: (ev) => {
      ev.preventDefault();
      const a = fromInput(start.value), b = fromInput(end.value);
      if (!a && !b) return fill(wrong, t('range.empty'));
      if (a && b && a >= b) return fill(wrong, t('range.order'));
      to({ start: a && iso(a), end: b && iso(b), range: '' });
    } }, field('start', `${t('range.start')} (${zoneName()})`, start), field('end', `${t('range.end')} (${zoneName()})`, end), wrong, h('button', { class: 'primary', type: 'submit' }, t('filter.apply'))),
  ]);
}

// saved searches are kept in this browser.
function saved(org, state) {
  const box = h('div', { class: 'stack' });
  const draw = () => {
    const all = store.read('searches', []);
    fill(box, all.length ? h('ul', { class: 'plainlist' }, all.map((s, i) => h('li', {},
      h('a', { class: 'item', href: address('events', s.state), 'data-nav': true }, s.name),
      h('button', { class: 'plain', 'aria-label': t('saved.remove', { name: s.name }), onclick: (ev) => {
        ev.stopPropagation();
        store.write('searches', all.toSpliced(i, 1));
        draw();
      } }, '×')))) : h('p', { class: 'hint' }, t('saved.none')),
    h('button', { onclick: async () => {
      const input = h('input', { maxlength: 80, autofocus: true, autocomplete: 'off' });
      const name = await dialog(t('saved.save'), field('name', t('saved.name'), input, t('saved.hint')), { action: t('save'), submit: () => input.value.trim() || Promise.reject(Object.assign(new Error(), { faults: [{ field: 'name', text: t('saved.empty') }] })) });
      if (!name) return;
      store.write('searches', [...all.filter((s) => s.name !== name), { name, state }]);
      draw();
      toast(t('saved.done', { name }));
    } }, t('saved.save')));
  };
  draw();
  return menu(t('saved'), box, { class: 'menu right' });
}
