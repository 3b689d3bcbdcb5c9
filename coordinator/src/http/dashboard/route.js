// Where the page is, all of which is in its address: "#/sources/default/demo?page=…".

/** The place that the address names: its parts, and what is asked of it. */
export function here() {
  const [path, query = ""] = (location.hash.startsWith("#/") ? location.hash.slice(2) : "").split("?");
  return { parts: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** The address of a place; what is empty is not asked. */
export function to(parts, query = {}) {
  const asked = Object.entries(query).filter(([, value]) => value);
  const search = new URLSearchParams(asked).toString();
  return `#/${parts.map(encodeURIComponent).join("/")}${search && `?${search}`}`;
}

/** The page of a source, or of one of its jobs. */
export function toSource({ namespace, name }, jobId) {
  return to(["sources", namespace, name, ...(jobId ? [jobId] : [])]);
}

/** The page of a job. */
export function toJob(job) {
  return toSource({ namespace: job.namespace, name: job.source }, job.jobId);
}

/** Goes to a place without a step in the history. */
export function replace(address) {
  history.replaceState(null, "", address);
  dispatchEvent(new HashChangeEvent("hashchange"));
}
