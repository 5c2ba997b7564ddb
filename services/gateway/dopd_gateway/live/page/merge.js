// A JSON merge patch (RFC 7386) on a document, in place.

export function merge(document, patch) {
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete document[key];
    else if (isObject(value) && Object.hasOwn(document, key) && isObject(document[key])) merge(document[key], value);
    else Object.defineProperty(document, key, { value, writable: true, enumerable: true, configurable: true });
  }
  return document;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
