// Permissions: users with passwords, programs with keys, analysts with SQL.
import { h, field, badge, confirm, dialog, toast, copy, note } from './dom.js';
import { t, time, ago } from './text.js';
import { get, post, put, del } from './api.js';
import { go } from './route.js';

const roles = ['publisher', 'auditor', 'admin'];

export async function render(main, { org, who, signal, admin }) {
  if (!admin) return main.append(note('info', t('access.admins')));
  const analystsPath = `/api/v1/organizations/${encodeURIComponent(org)}/analysts`;
  const [users, keys, ways, analysts] = await Promise.all([get('/api/v1/users', signal), get('/api/v1/keys', signal), get('/api/v1/session/ways', signal), org ? get(analystsPath, signal) : []]);
  const again = () => go(location.pathname + location.search, { replace: true });
  const scope = (v) => v.organization || t('access.everywhere');
  const chooseRole = (value) => {
    const s = h('select', {}, roles.map((r) => h('option', { value: r }, `${t('role.' + r)} – ${t('role.' + r + '.may')}`)));
    s.value = value ?? 'auditor';
    return s;
  };
  const chooseScope = (value) => {
    const s = h('select', {}, org && h('option', { value: org }, org), value && value !== org && h('option', { value }, value), !who.organization && h('option', { value: '' }, t('access.everywhere')));
    s.value = value ?? (org || '');
    return s;
  };
  const named = (value) => /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/.test(value);

  async function user(u) {
    const c = { name: h('input', { value: u?.name ?? '', readonly: !!u, autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', maxlength: 64, autofocus: !u }), role: chooseRole(u?.role), organization: chooseScope(u?.organization ?? (u ? '' : undefined)),
      password: h('input', { type: 'password', autocomplete: 'new-password', maxlength: 1024 }),
      way: h('select', {}, ['password', 'openid'].map((w) => h('option', { value: w }, t('sign.way.' + w)))) };
    c.way.value = u?.sign_in ?? 'password';
    const password = field('password', t('sign.password'), c.password, t(u ? 'user.password.stays' : 'first.password.hint'));
    const choose = () => { password.hidden = c.way.value === 'openid'; };
    c.way.addEventListener('change', choose);
    choose();
    const byOpenID = () => c.way.value === 'openid';
    const done = await dialog(u ? t('user.edit', { name: u.name }) : t('user.new'), [field('name', t('sign.name'), c.name, !u && t('first.name.hint')), field('role', t('role'), c.role), field('organization', t('access.of'), c.organization),
      (ways.openid || u?.sign_in === 'openid') && field('way', t('sign.way'), c.way), password], { action: t('save'), submit: async () => {
      const faults = [];
      if (!named(c.name.value.trim())) faults.push({ field: 'name', text: t('name.wrong', { value: c.name.value }) });
      if (!byOpenID() && (!u || u.sign_in === 'openid' || c.password.value) && new TextEncoder().encode(c.password.value).length < 12) faults.push({ field: 'password', text: t('first.password.short') });
      if (faults.length) throw Object.assign(new Error(), { faults });
      const body = { role: c.role.value, sign_in: c.way.value };
      if (c.organization.value) body.organization = c.organization.value;
      if (c.password.value && !byOpenID()) body.password = c.password.value;
      await put(`/api/v1/users/${encodeURIComponent(c.name.value.trim())}`, body);
    } });
    if (done) {
      toast(t('saved.ok'));
      again();
    }
  }

  async function key() {
    const c = { name: h('input', { autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', maxlength: 64, autofocus: true }), role: chooseRole('publisher'), organization: chooseScope(), days: h('input', { type: 'number', min: 1, max: 3650, value: 365 }) };
    const made = await dialog(t('key.new'), [field('name', t('key.name'), c.name), field('role', t('role'), c.role), field('organization', t('access.of'), c.organization), field('days', t('key.days'), c.days)], { action: t('key.make'), submit: () => {
      const faults = [];
      const days = Number(c.days.value);
      if (!named(c.name.value.trim())) faults.push({ field: 'name', text: t('name.wrong', { value: c.name.value }) });
      if (!Number.isInteger(days) || days < 1 || days > 3650) faults.push({ field: 'days', text: t('number.wrong', { value: c.days.value, low: 1, high: 3650 }) });
      if (faults.length) throw Object.assign(new Error(), { faults });
      const body = { name: c.name.value.trim(), role: c.role.value, days };
      if (c.organization.value) body.organization = c.organization.value;
      return post('/api/v1/keys', body);
    } });
    if (!made) return;
    await dialog(t('key.made', { name: made.name }), [note('info', t('key.once')), h('p', { class: 'secret', 'data-secret': true }, made.secret), h('button', { type: 'button', onclick: () => copy(made.secret) }, t('copy'))]);
    again();
  }

  async function analyst() {
    const c = { name: h('input', { autocomplete: 'off', autocapitalize: 'none', spellcheck: 'false', maxlength: 64, autofocus: true }), days: h('input', { type: 'number', min: 1, max: 3650, value: 365 }) };
    const made = await dialog(t('analyst.new'), [field('name', t('key.name'), c.name), field('days', t('key.days'), c.days)], { action: t('analyst.make'), submit: () => {
      const faults = [];
      const days = Number(c.days.value);
      if (!named(c.name.value.trim())) faults.push({ field: 'name', text: t('name.wrong', { value: c.name.value }) });
      if (!Number.isInteger(days) || days < 1 || days > 3650) faults.push({ field: 'days', text: t('number.wrong', { value: c.days.value, low: 1, high: 3650 }) });
      if (faults.length) throw Object.assign(new Error(), { faults });
      return post(analystsPath, { name: c.name.value.trim(), days });
    } });
    if (!made) return;
    const facts = h('dl', { class: 'facts' }, [['analyst.address', made.address], ['analyst.database', made.database], ['analyst.user', made.username]].map(([key, value]) => [h('dt', {}, t(key)), h('dd', {}, value)]));
    await dialog(t('analyst.made', { name: made.name }), [note('info', t('analyst.once')), facts, h('p', { class: 'secret', 'data-secret': true }, made.password), h('button', { type: 'button', onclick: () => copy(made.password) }, t('copy'))]);
    again();
  }

  const remove = (title, text, path, done) => async () => {
    if (!(await confirm(title, text, title))) return;
    try {
      await del(path);
      toast(done);
      again();
    } catch (err) {
      toast(err.message, 'error');
    }
  };
  const cell = (label, ...inside) => h('td', { 'data-label': label }, ...inside);
  const table = (heads, rows) => h('div', { class: 'scroll' }, h('table', { class: 'stackable' }, h('thead', {}, h('tr', {}, heads.map((k) => h('th', { scope: 'col' }, k)), h('th', {}, h('span', { class: 'hidden' }, t('actions'))))), h('tbody', {}, rows)));

  main.append(h('h1', { class: 'pagehead' }, t('nav.access')),
    h('section', { class: 'card', 'aria-label': t('users') }, h('div', { class: 'pagehead' }, h('h2', {}, t('users')), h('span', { class: 'spacer' }), h('button', { onclick: () => user() }, t('user.new'))),
      table([t('sign.name'), t('role'), t('access.of'), t('access.made')], users.map((u) => h('tr', {}, h('td', {}, h('b', {}, u.name), u.name === who.id && [' ', badge('quiet', t('you'))]), cell(t('role'), t('role.' + u.role)), cell(t('access.of'), scope(u)), cell(t('access.made'), time(u.created).slice(0, 16), h('span', { class: 'muted' }, ` ${u.by}`)),
        h('td', {}, h('div', { class: 'actions tight' }, h('button', { onclick: () => user(u) }, t('edit')), u.name !== who.id && h('button', { class: 'danger', onclick: remove(t('user.remove'), t('user.remove.sure', { name: u.name }), `/api/v1/users/${encodeURIComponent(u.name)}`, t('user.removed', { name: u.name })) }, t('remove')))))))),
    h('section', { class: 'card', 'aria-label': t('apikeys') }, h('div', { class: 'pagehead' }, h('h2', {}, t('apikeys')), h('span', { class: 'spacer' }), h('button', { onclick: key }, t('key.new'))),
      keys.length ? table([t('key.name'), t('role'), t('access.of'), t('key.expires'), t('access.made')], keys.map((k) => h('tr', {}, h('td', {}, h('b', {}, k.name)), cell(t('role'), t('role.' + k.role)), cell(t('access.of'), scope(k)),
        cell(t('key.expires'), new Date(k.expires) < new Date() ? badge('bad', t('key.expired')) : [time(k.expires).slice(0, 10), h('span', { class: 'muted' }, ` ${ago(k.expires)}`)]), cell(t('access.made'), time(k.created).slice(0, 16), h('span', { class: 'muted' }, ` ${k.by}`)),
        h('td', {}, h('button', { class: 'danger', onclick: remove(t('key.revoke'), t('key.revoke.sure', { name: k.name }), `/api/v1/keys/${encodeURIComponent(k.name)}`, t('key.revoked', { name: k.name })) }, t('key.revoke')))))) : h('p', { class: 'hint' }, t('keys.none'))),
    org && h('section', { class: 'card', 'aria-label': t('analysts') }, h('div', { class: 'pagehead' }, h('h2', {}, t('analysts')), h('span', { class: 'spacer' }), h('button', { onclick: analyst }, t('analyst.new'))), h('p', { class: 'hint' }, t('analysts.hint', { name: org })),
      analysts.length ? table([t('key.name'), t('analyst.user'), t('key.expires'), t('access.made')], analysts.map((a) => h('tr', {}, h('td', {}, h('b', {}, a.name)), cell(t('analyst.user'), a.username),
        cell(t('key.expires'), new Date(a.expires) < new Date() ? badge('bad', t('key.expired')) : [time(a.expires).slice(0, 10), h('span', { class: 'muted' }, ` ${ago(a.expires)}`)]), cell(t('access.made'), time(a.created).slice(0, 16), h('span', { class: 'muted' }, ` ${a.by}`)),
        h('td', {}, h('button', { class: 'danger', onclick: remove(t('analyst.remove'), t('analyst.remove.sure', { name: a.username }), `${analystsPath}/${encodeURIComponent(a.name)}`, t('analyst.removed', { name: a.username })) }, t('remove')))))) : h('p', { class: 'hint' }, t('analysts.none'))));
}
