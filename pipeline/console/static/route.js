// Addresses of pages, and the way to them. The frame, which imports the pages, says how a page is shown and whose it is.
let frame;

// framed takes show, which shows the page of the address; organization, the one at hand; chooses, whether it was chosen.
export function framed(f) {
  frame = f;
}

// address is that of a page with its parameters; an operator's says which organization.
export function address(page, values = {}) {
  const q = new URLSearchParams();
  if (frame.chooses()) q.set('org', values.org ?? frame.organization());
  for (const [k, v] of Object.entries(values)) if (k !== 'org' && v !== undefined && v !== null && v !== '') q.set(k, v);
  const text = q.toString();
  return `/${page}${text ? '?' + text : ''}`;
}

export function go(url, { replace } = {}) {
  if (replace) history.replaceState(null, '', url);
  else history.pushState(null, '', url);
  return frame.show();
}
