// Owns: writing small safetensors files for tests. It checks nothing, so that a test can write what must be refused.
import { writeFileSync } from "node:fs";

export interface SafetensorsInput {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
  /** In place of where it really lies. */
  readonly dataOffsets?: readonly unknown[];
}

export function safetensorsBytes(tensors: readonly SafetensorsInput[], metadata?: Record<string, string>): Uint8Array {
  const header: Record<string, unknown> = metadata === undefined ? {} : { __metadata__: metadata };
  let end = 0;
  for (const { name, dtype, shape, data, dataOffsets } of tensors) {
    header[name] = { dtype, shape, data_offsets: dataOffsets ?? [end, end + data.length] };
    end += data.length;
  }
  return rawSafetensors(
    JSON.stringify(header),
    tensors.map(({ data }) => data),
  );
}

/** Any header text. */
export function rawSafetensors(header: string, data: readonly Uint8Array[] = [], headerBytes?: bigint): Uint8Array {
  const text = new TextEncoder().encode(header);
  const length = new Uint8Array(8);
  new DataView(length.buffer).setBigUint64(0, headerBytes ?? BigInt(text.length), true);
  return new Uint8Array(Buffer.concat([length, text, ...data]));
}

export function writeSafetensors(
  path: string,
  tensors: readonly SafetensorsInput[],
  metadata?: Record<string, string>,
): void {
  writeFileSync(path, safetensorsBytes(tensors, metadata));
}
