// Owns: the instructions of Hopper that the products use: barriers of shared memory, the copy engine, wgmma on bf16. Only where
// MR_HOPPER is defined: wgmma exists on sm_90a alone.
#pragma once
#include <stdint.h>

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MR_HOPPER 1
#endif

namespace mr {

/// A CUtensorMap, by value.
struct alignas(64) TensorMap {
  uint64_t words[16];
};

#ifdef MR_HOPPER
// d = (scale ? d : 0) + a · bᵀ, 64 rows of a, N of b, 16 along k.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, int scale);

#define MR_P1 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MR_P2 MR_P1 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MR_P3 MR_P2 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MR_P4 MR_P3 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define MR_P5 MR_P4 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MR_P6 MR_P5 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MR_P7 MR_P6 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MR_P8 MR_P7 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MR_P9 MR_P8 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define MR_P10 MR_P9 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define MR_P11 MR_P10 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define MR_P12 MR_P11 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MR_P13 MR_P12 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define MR_P14 MR_P13 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define MR_P15 MR_P14 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define MR_P16 MR_P15 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define MR_D1(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3]), "+f"(d[j + 1][0]), "+f"(d[j + 1][1]), "+f"(d[j + 1][2]), "+f"(d[j + 1][3])
#define MR_D2(j) MR_D1(j), MR_D1(j + 2)
#define MR_D3(j) MR_D2(j), MR_D1(j + 4)
#define MR_D4(j) MR_D3(j), MR_D1(j + 6)
#define MR_D5(j) MR_D4(j), MR_D1(j + 8)
#define MR_D6(j) MR_D5(j), MR_D1(j + 10)
#define MR_D7(j) MR_D6(j), MR_D1(j + 12)
#define MR_D8(j) MR_D7(j), MR_D1(j + 14)
#define MR_D9(j) MR_D8(j), MR_D1(j + 16)
#define MR_D10(j) MR_D9(j), MR_D1(j + 18)
#define MR_D11(j) MR_D10(j), MR_D1(j + 20)
#define MR_D12(j) MR_D11(j), MR_D1(j + 22)
#define MR_D13(j) MR_D12(j), MR_D1(j + 24)
#define MR_D14(j) MR_D13(j), MR_D1(j + 26)
#define MR_D15(j) MR_D14(j), MR_D1(j + 28)
#define MR_D16(j) MR_D15(j), MR_D1(j + 30)
#define MR_WGMMA(N, PLACES, OPERANDS, A, B, SCALE)                                                                          \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma<N>(float (&d)[N / 8][4], uint64_t a, uint64_t b, int scale) {                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #SCALE ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                \
                 "k16.f32.bf16.bf16 {" PLACES "}, %" #A ", %" #B ", p, 1, 1, 0, 0;\n}\n"                               \
                 : OPERANDS(0)                                                                                         \
                 : "l"(a), "l"(b), "r"(scale));                                                                        \
  }
MR_WGMMA(16, MR_P1, MR_D1, 8, 9, 10)
MR_WGMMA(32, MR_P2, MR_D2, 16, 17, 18)
MR_WGMMA(48, MR_P3, MR_D3, 24, 25, 26)
MR_WGMMA(64, MR_P4, MR_D4, 32, 33, 34)
MR_WGMMA(96, MR_P6, MR_D6, 48, 49, 50)
MR_WGMMA(112, MR_P7, MR_D7, 56, 57, 58)
MR_WGMMA(128, MR_P8, MR_D8, 64, 65, 66)
MR_WGMMA(192, MR_P12, MR_D12, 96, 97, 98)
MR_WGMMA(224, MR_P14, MR_D14, 112, 113, 114)
MR_WGMMA(256, MR_P16, MR_D16, 128, 129, 130)
#undef MR_WGMMA

// As above, the rows of a in registers, as mma's A operand: each warp of the four has 16.
template <int N>
__device__ __forceinline__ void wgmma(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, int scale);
#define MR_WGMMA(N, PLACES, OPERANDS, A, B, C, D, E, SCALE)                                                                          \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma<N>(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b, int scale) {                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #SCALE ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N                \
                 "k16.f32.bf16.bf16 {" PLACES "}, {%" #A ", %" #B ", %" #C ", %" #D "}, %" #E ", p, 1, 1, 0;\n}\n"                               \
                 : OPERANDS(0)                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(scale));                                                                        \
  }
MR_WGMMA(16, MR_P1, MR_D1, 8, 9, 10, 11, 12, 13)
MR_WGMMA(32, MR_P2, MR_D2, 16, 17, 18, 19, 20, 21)
MR_WGMMA(48, MR_P3, MR_D3, 24, 25, 26, 27, 28, 29)
MR_WGMMA(64, MR_P4, MR_D4, 32, 33, 34, 35, 36, 37)
#undef MR_WGMMA

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void barrier_init(uint64_t* b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(b)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* b, int phase) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra again;\n}\n" ::"r"(shared_address(b)),
      "r"(phase)
      : "memory");
}
// Rows of 128 bytes in 128-byte swizzle, groups of 8 rows 1024 bytes apart.
__device__ __forceinline__ uint64_t descriptor(const void* p) {
  return static_cast<uint64_t>((shared_address(p) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// Bytes on a multiple of 16, by one thread.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}
// Box (column, row) of the map, by one thread.
__device__ __forceinline__ void copy_box(void* to, const TensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
               : "memory");
}
// As copy_box, to the same place in every block of the cluster that the mask names, each one's barrier told.
__device__ __forceinline__ void copy_box_to(uint16_t blocks, void* to, const TensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
                   shared_address(to)),
               "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
               : "memory");
}
// At the barrier that lies here, in another block of the cluster.
__device__ __forceinline__ void barrier_arrive_at(int rank, uint64_t* b) {
  asm volatile(
      "{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\nmbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(
          shared_address(b)),
      "r"(rank)
      : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
// *p += v, on a multiple of 16 bytes, without waiting for the answer.
__device__ __forceinline__ void add4(float* p, float4 v) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
#endif

}  // namespace mr
