// The frame of the console: who is signed in, which organization, which page.
import { h, fill, note, field, menu, dialog, toast } from './dom.js';
import { t, look, loadMessages } from './text.js';
import { get, del } from './api.js';
import { signIn } from './signin.js';
import { address, go, framed } from './route.js';

const pages = {
  events: () => import('./events.js'),
  exports: () => import('./exports.js'),
  destinations: () => import('./destinations.js'),
  organization: () => import('./organization.js'),
  integrity: () => import('./integrity.js'),
  access: () => import('./access.js'),
  system: () => import('./system.js'),
};

let who; // the one who is signed in
let organizations = [];
let left; // aborts what the page at hand still does
const header = h('header', { class: 'top' });
const main = h('main', { id: 'main', tabindex: '-1' });

const params = () => new URLSearchParams(location.search);
const pageName = () => location.pathname.slice(1) || 'events';

// organization is the one at hand: the person's own, or the one an operator chose.
function organization() {
  if (who.organization) return who.organization;
  return params().get('org') || sessionStorage.getItem('kansa.org') || localStorage.getItem('kansa.org') || organizations.find((o) => o !== 'kansa') || organizations[0] || '';
}

async function show() {
  left?.abort();
  left = new AbortController();
  const signal = left.signal;
  if (!who) return start();
  const name = pages[pageName()] ? pageName() : 'events';
  const org = organization();
  if (org && !who.organization) {
    sessionStorage.setItem('kansa.org', org);
    localStorage.setItem('kansa.org', org);
  }
  frame(name, org);
  document.title = `${t('nav.' + name)}${org ? ' · ' + org : ''} · Kansa`;
  if (who.role === 'publisher') return fill(main, note('info', t('publisher')));
  if (!org && name !== 'system' && name !== 'access') return fill(main, h('div', { class: 'empty' }, h('h1', {}, t('org.none')), h('p', {}, t('org.none.hint'))));
  main.dataset.page = name;
  main.setAttribute('aria-busy', 'true');
  try {
    const { render } = await pages[name]();
    if (signal.aborted) return;
    await render(fill(main), { org, who, signal, admin: who.role === 'admin', params: params() });
  } catch (err) {
    if (signal.aborted || err.name === 'AbortError') return;
    fill(main, note('error', err.message), h('button', { onclick: () => show() }, t('again')));
    if (!err.status) console.error(err);
  } finally {
    if (!signal.aborted) main.removeAttribute('aria-busy');
  }
}

function frame(name, org) {
  const links = ['events', 'integrity', 'exports', 'destinations', 'organization', ...(who.role === 'admin' ? ['access'] : []), ...(who.organization && who.role !== 'admin' ? [] : ['system'])];
  fill(header,
    h('a', { class: 'brand', href: address('events'), 'data-nav': true, 'aria-label': 'Kansa' }, h('img', { src: new URL('icon.svg', import.meta.url).pathname, alt: '', width: 22, height: 22 }), h('span', {}, 'Kansa')),
    h('nav', { 'aria-label': t('nav') }, links.map((l) => h('a', { href: address(l), 'data-nav': true, 'aria-current': l === name && 'page' }, t('nav.' + l)))),
    chooseOrganization(org), settings());
  header.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
}

function chooseOrganization(org) {
  if (who.organization) return h('span', { class: 'org' }, who.organization);
  const all = [...new Set([...organizations, org].filter(Boolean))].sort();
  const select = h('select', { class: 'org', 'aria-label': t('org'), onchange: async () => {
    let to = select.value;
    if (to === '\n') {
      const input = h('input', { autofocus: true, autocomplete: 'off', maxlength: 64 });
      to = await dialog(t('org.other'), field('organization', t('org'), input), { action: t('choose'), submit: () => input.value.trim() || Promise.reject(new Error(t('org.empty'))) });
      if (!to) {
        select.value = org;
        return;
      }
    }
    go(address(pageName(), { ...Object.fromEntries(keep()), org: to }));
  } }, all.map((o) => h('option', { value: o }, o)), h('option', { value: '\n' }, t('org.other')));
  select.value = org;
  return select;
}

// keep is what of a search makes sense in another organization.
function keep() {
  return [...params()].filter(([k]) => ['range', 'start', 'end', 'trail', 'outcome'].includes(k));
}

function settings() {
  const remember = (name, value) => { document.cookie = `${name}=${value}; path=/; max-age=31536000; samesite=lax`; };
  const choice = (label, name, options, value, change) => {
    const s = h('select', { onchange: () => change(s.value) }, options.map(([v, text]) => h('option', { value: v }, text)));
    s.value = value;
    return field(name, label, s);
  };
  return menu(h('span', {}, h('span', { class: 'who' }, who.id), h('span', { class: 'dots', 'aria-hidden': true }, '⋯')), [
    h('p', { class: 'muted' }, t('signed.in', { id: who.id, role: t('role.' + who.role) })),
    choice(t('language'), 'language', [['en', 'English'], ['ja', '日本語']], look.lang, (v) => {
      remember('kansa_lang', v);
      look.lang = document.documentElement.lang = v;
      show();
    }),
    choice(t('theme'), 'theme', [['', t('theme.system')], ['light', t('theme.light')], ['dark', t('theme.dark')]], document.documentElement.dataset.theme ?? '', (v) => {
      remember('kansa_theme', v || 'system');
      if (v) document.documentElement.dataset.theme = v;
      else delete document.documentElement.dataset.theme;
      show();
    }),
    choice(t('zone'), 'zone', [['local', Intl.DateTimeFormat().resolvedOptions().timeZone], ['utc', 'UTC']], look.zone, (v) => {
      localStorage.setItem('kansa.zone', v);
      look.zone = v;
      show();
    }),
    h('div', { class: 'actions' },
      h('button', { onclick: shortcuts }, t('keys')),
      h('button', { onclick: async () => {
        await del('/api/v1/session');
        document.body.dataset.session = 'false';
        who = undefined;
        history.replaceState(null, '', '/');
        show();
      } }, t('sign.out'))),
  ], { class: 'menu right' });
}

const keyList = [['/', 'keys.search'], ['j', 'keys.next'], ['k', 'keys.previous'], ['Enter', 'keys.open'], ['Esc', 'keys.close'], ['l', 'keys.live'], ['1 – 7', 'keys.pages'], ['?', 'keys.help']];

function shortcuts() {
  dialog(t('keys'), h('dl', { class: 'keys' }, keyList.map(([k, text]) => [h('dt', {}, h('kbd', {}, k)), h('dd', {}, t(text))])));
}

document.addEventListener('keydown', (ev) => {
  if (!who || ev.ctrlKey || ev.metaKey || ev.altKey || document.querySelector('dialog[open]') || ev.target.closest?.('input, select, textarea')) return;
  if (ev.key === '?') shortcuts();
  const links = header.querySelectorAll('nav a');
  if (/^[1-9]$/.test(ev.key)) links[ev.key - 1]?.click();
});

document.addEventListener('click', (ev) => {
  const a = ev.target.closest?.('a[data-nav]');
  if (!a || ev.ctrlKey || ev.metaKey || ev.shiftKey || ev.button) return;
  ev.preventDefault();
  go(a.getAttribute('href')).then(() => main.focus({ preventScroll: true }));
});

addEventListener('popstate', () => { if (who) show(); });
document.addEventListener('kansa:signed-out', () => {
  if (!who) return;
  who = undefined;
  document.body.dataset.session = 'false';
  left?.abort();
  start();
  toast(t('session.ended'), 'info');
});

// start finds out who is signed in, or has somebody sign in.
async function start() {
  if (location.pathname !== '/first' && document.body.dataset.session === 'true') {
    try {
      who = await get('/api/v1/session');
    } catch (err) {
      if (err.status !== 401) return fill(document.body, main, fill(main, note('error', err.message)));
    }
  }
  if (!who) {
    const first = location.pathname === '/first';
    who = await signIn(first ? decodeURIComponent(location.hash.slice(1)) : undefined);
    document.body.dataset.session = 'true';
    if (first) history.replaceState(null, '', '/');
  }
  organizations = [];
  if (!who.organization && who.role !== 'publisher') {
    try {
      organizations = (await get('/api/v1/organizations')).map((o) => o.name);
    } catch (err) {
      toast(err.message, 'error');
    }
  }
  fill(document.body, h('a', { class: 'skip', href: '#main', onclick: (ev) => { ev.preventDefault(); main.focus(); } }, t('skip')), header, main);
  return show();
}

framed({ show, organization, chooses: () => !who.organization });
loadMessages().then(start);
