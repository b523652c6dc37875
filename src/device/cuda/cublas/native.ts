// Owns: NVIDIA's own matrix products, where their library is on this machine: `bench ops` puts them beside ours. Nothing
// else uses them.
import { createRequire } from "node:module";
import { InternalError } from "../../../base/errors.js";

const names = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];
/** cudaDataType and cublasComputeType of cublas_api.h. */
const [bf16, sumsInF32] = [14, 68];

export interface Cublas {
  /** y [tokens, rows] = x [tokens, cols] · w [rows, cols], all bf16, addresses on the device. */
  multiply(w: number, x: number, y: number, rows: number, tokens: number, cols: number): void;
  close(): void;
}

/** undefined: it is not on this machine. The stream's context must be current. */
export function openCublas(stream: number): Cublas | undefined {
  const koffi = createRequire(import.meta.url)("koffi") as typeof import("koffi");
  let library: ReturnType<typeof koffi.load> | undefined;
  for (const name of names) {
    try {
      library ??= koffi.load(name);
    } catch {
      // The next name.
    }
  }
  if (!library) return undefined;
  const create = library.func("cublasCreate_v2", "int", ["void*"]);
  const destroy = library.func("cublasDestroy_v2", "int", ["uint64_t"]);
  const setStream = library.func("cublasSetStream_v2", "int", ["uint64_t", "uint64_t"]);
  const product = library.func("cublasGemmEx", "int", [
    ...["uint64_t", "int", "int", "int", "int", "int", "void*"],
    ...["uint64_t", "int", "int", "uint64_t", "int", "int", "void*", "uint64_t", "int", "int", "int", "int"],
  ]);
  const check = (what: string, status: number) => {
    if (status !== 0) throw new InternalError(`${what} failed with status ${status}`);
  };
  const out = new BigUint64Array(1);
  check("cublasCreate", create(out));
  const handle = out[0];
  check("cublasSetStream", setStream(handle, stream));
  const [one, zero] = [Float32Array.of(1), Float32Array.of(0)];
  return {
    // Its matrices are column by column: what is [rows, cols] here is [cols, rows] there, and turned (1).
    multiply(w, x, y, rows, tokens, cols) {
      const sizes = [handle, 1, 0, rows, tokens, cols, one];
      const operands = [w, bf16, cols, x, bf16, cols, zero, y, bf16, rows];
      check("cublasGemmEx", product(...sizes, ...operands, sumsInF32, -1));
    },
    close() {
      destroy(handle);
    },
  };
}
