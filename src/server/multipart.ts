// Owns: reading multipart/form-data (RFC 7578) as it arrives: part after part, none of them held in memory whole. Refuses what
// is not well-formed, and what ends too early.
import { UserError } from "../base/errors.js";

export interface Part {
  readonly name: string;
  /** undefined: a plain field. */
  readonly filename: string | undefined;
  /** To be read to its end before the next part is asked for. */
  readonly body: AsyncGenerator<Buffer>;
}

const mostHeaders = 16_384;

/** Throws UserError where the header names none. */
export function boundaryOf(contentType: string | undefined): string {
  const [, quoted, plain] = /;\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))/i.exec(contentType ?? "") ?? [];
  const boundary = quoted ?? plain;
  if (boundary === undefined) throw malformed("its Content-Type names no boundary");
  return boundary;
}

export async function* partsOf(source: AsyncIterable<Buffer>, boundary: string): AsyncGenerator<Part> {
  const reader = new Reader(source);
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  for await (const _ of reader.until(delimiter));
  for (;;) {
    const next = (await reader.take(2)).toString("latin1");
    if (next === "--") return;
    if (next !== "\r\n") throw malformed("a boundary is followed by something else");
    const part = describe((await reader.line("\r\n\r\n")).toString("utf8"));
    const body = reader.until(delimiter);
    yield { ...part, body };
    for await (const _ of body);
  }
}

class Reader {
  private readonly source: AsyncIterator<Buffer>;
  /** The first boundary may have no line before it. */
  private buffer: Buffer = Buffer.from("\r\n");

  constructor(source: AsyncIterable<Buffer>) {
    this.source = source[Symbol.asyncIterator]();
  }

  /** What comes before the mark, which is read over. */
  async *until(mark: Buffer): AsyncGenerator<Buffer> {
    for (;;) {
      const at = this.buffer.indexOf(mark);
      if (at >= 0) {
        const last = this.buffer.subarray(0, at);
        this.buffer = this.buffer.subarray(at + mark.length);
        if (last.length > 0) yield last;
        return;
      }
      // The mark may have begun.
      const sure = Math.max(0, this.buffer.length - mark.length + 1);
      const piece = this.buffer.subarray(0, sure);
      this.buffer = this.buffer.subarray(sure);
      if (piece.length > 0) yield piece;
      await this.more();
    }
  }

  async take(length: number): Promise<Buffer> {
    while (this.buffer.length < length) await this.more();
    const taken = this.buffer.subarray(0, length);
    this.buffer = this.buffer.subarray(length);
    return taken;
  }

  async line(end: string): Promise<Buffer> {
    for (;;) {
      const at = this.buffer.indexOf(end);
      if (at >= 0) return (await this.take(at + end.length)).subarray(0, at);
      if (this.buffer.length > mostHeaders) throw malformed("a part's headers are too long");
      await this.more();
    }
  }

  private async more(): Promise<void> {
    const { done, value } = await this.source.next();
    if (done) throw malformed("it ends before its last boundary");
    this.buffer = this.buffer.length === 0 ? value : Buffer.concat([this.buffer, value]);
  }
}

function describe(headers: string): { name: string; filename: string | undefined } {
  const disposition = /^content-disposition:\s*form-data\s*(;.*)$/im.exec(headers)?.[1];
  const parameter = (name: string) => {
    const [, quoted, plain] =
      new RegExp(`;\\s*${name}=(?:"((?:[^"\\\\]|\\\\.)*)"|([^\\s;]+))`, "i").exec(disposition ?? "") ?? [];
    return quoted?.replace(/\\(.)/g, "$1") ?? plain;
  };
  const name = parameter("name");
  if (name === undefined) throw malformed("a part has no name");
  return { name, filename: parameter("filename") };
}

const malformed = (why: string) =>
  new UserError(`The body is not valid multipart/form-data: ${why}.`, { code: "invalid_multipart" });
