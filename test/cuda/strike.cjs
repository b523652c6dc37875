// Owns: faults on a GPU, made to order: loaded into an engine's process (NODE_OPTIONS=--require) it stands between koffi and the
// driver. After SIGUSR2 the fifth graph that is launched meets what MILLRACE_TEST_STRIKE says:
//
//   access   a kernel that writes where nothing is          hang   a kernel that runs for half a minute, and a clock that leaps
//   missing  the graph is not launched at all               kill   SIGKILL for this process
const koffi = require("koffi");

const what = process.env.MILLRACE_TEST_STRIKE;
const kernels = `
.version 7.0
.target sm_80
.address_size 64
.visible .entry access() {
  .reg .b64 %rd<2>;
  .reg .b32 %r<2>;
  mov.u64 %rd1, 64;
  mov.u32 %r1, 1;
  st.global.u32 [%rd1], %r1;
  ret;
}
.visible .entry hang() {
  .reg .b64 %rd<4>;
  .reg .pred %p<2>;
  mov.u64 %rd1, %globaltimer;
  add.u64 %rd2, %rd1, 30000000000;
again:
  nanosleep.u32 1000;
  mov.u64 %rd3, %globaltimer;
  setp.lt.u64 %p1, %rd3, %rd2;
  @%p1 bra again;
  ret;
}
`;

let left = Number.POSITIVE_INFINITY;
process.on("SIGUSR2", () => {
  left = 5;
});

function must(code) {
  if (code !== 0) console.error(`the strike itself failed: ${code}`);
}

function strike(library, stream) {
  if (what === "kill") process.kill(process.pid, "SIGKILL");
  const call = (name, ...types) => library.func(name, "int", types);
  const [module, kernel] = [new BigUint64Array(1), new BigUint64Array(1)];
  must(call("cuModuleLoadData", "void*", "void*")(module, Buffer.from(`${kernels}\0`)));
  must(call("cuModuleGetFunction", "void*", "uint64_t", "str")(kernel, module[0], what));
  const sizes = Array(7).fill("uint32_t");
  const launch = call("cuLaunchKernel", "uint64_t", ...sizes, "uint64_t", "uint64_t", "uint64_t");
  must(launch(kernel[0], 1, 1, 1, 1, 1, 1, 0, stream, 0, 0));
  if (what !== "hang") return;
  // Once the step is waited for.
  const now = performance.now.bind(performance);
  setTimeout(() => {
    performance.now = () => now() + 1e6;
  }, 100);
}

const load = koffi.load;
koffi.load = (path, ...rest) => {
  const library = load(path, ...rest);
  if (!String(path).includes("libcuda")) return library;
  const func = (name, ...types) => {
    const call = library.func(name, ...types);
    if (name !== "cuGraphLaunch") return call;
    return (graph, stream) => {
      if (--left !== 0) return call(graph, stream);
      if (what === "missing") return 0;
      strike(library, stream);
      return call(graph, stream);
    };
  };
  return { func };
};
