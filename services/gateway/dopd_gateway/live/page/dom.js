// Elements. Text only ever becomes text: nothing that comes from outside is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== "" && child !== null && child !== undefined));
  return element;
}

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

export const byId = (id) => document.getElementById(id);

/** Set text, if it is another one: what is read aloud is read once. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Rows that stay what they are: made once by key, in this order, taken away with their key. */
export function keep(list, keys, make) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let before = null;
  for (const key of keys) {
    let child = known.get(key);
    if (!child) {
      child = make(key);
      child.dataset.key = key;
    }
    known.delete(key);
    const place = before ? before.nextSibling : list.firstChild;
    if (place !== child) list.insertBefore(child, place);
    before = child;
  }
  for (const child of known.values()) child.remove();
}
