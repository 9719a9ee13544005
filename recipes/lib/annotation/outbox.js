// What somebody answered stays here, in memory and in localStorage, until the server has it.

export async function post(path, body) {
  const response = await fetch(path, {
    method: "POST", headers: { "content-type": "application/json" },
    body: JSON.stringify(body), signal: AbortSignal.timeout(20000),
  });
  const said = await response.json().catch(() => ({ error: response.statusText }));
  if (response.ok) return said;
  throw Object.assign(new Error(said.error), { status: response.status });
}

export class Outbox {
  // send(entry) posts an entry; told(error) hears after each try, error is null where it went well.
  constructor(send, told) {
    Object.assign(this, { send, told, box: null, entries: new Map(), running: null, error: null });
  }

  open(box) {
    if (this.box !== box) [this.box, this.entries] = [box, new Map()];
  }

  add(claim, entry) {
    this.entries.set(claim, entry);
    try {
      localStorage.setItem(`${this.box}/${claim}`, JSON.stringify({ ...entry, at: Date.now() }));
    } catch { /* memory has it */ }
    return this.flush();
  }

  // Entries that a tab left behind which is gone by now, or does not get through.
  adopt() {
    for (const key of Object.keys(localStorage)) {
      const [box, claim] = key.split("/");
      if (box !== this.box || !claim || this.entries.has(claim)) continue;
      const entry = JSON.parse(localStorage.getItem(key));
      if (Date.now() - entry.at > 5000) this.entries.set(claim, entry);
    }
    return this.flush();
  }

  flush() {
    this.running ??= this.#sendAll().finally(() => (this.running = null));
    return this.running;
  }

  async #sendAll() {
    for (const [claim, entry] of this.entries) {
      try {
        await this.send(entry);
        this.error = null;
      } catch (error) {
        this.error = error;
        this.told(error);
        if (![400, 413].includes(error.status)) return; // tried again by and by
      }
      this.entries.delete(claim);
      localStorage.removeItem(`${this.box}/${claim}`);
      this.told(this.error);
    }
  }
}
