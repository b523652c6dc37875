// Owns: what bench_linear runs, by its arguments.
#pragma once

static Layer head(int type, int cols) { return {{cols, {{{type, 128256}}, mr::store_y}}}; }

static void time_decode() {
  for (int type : {mr::BF16, mr::Q8_0, mr::Q4_0, mr::Q4_K, mr::Q6_K, mr::F16, mr::Q5_K}) {
    const std::string t = names[type];
    const double layers = time_chain(("8B " + t).c_str(), plain_layer(true, type), 32, 1, run, 1);
    if (type == mr::BF16 || type == mr::Q4_K) for (int i = 0; i < 4; i++) time_chain(("8B " + t).c_str(), plain_layer(true, type), 16, 1, run, 1, i);
    const double last = time_chain(("8B head " + t).c_str(), head(type, 4096), 4, 1, run, 1) / 4;
    const double small = time_chain(("1B " + t).c_str(), plain_layer(false, type), 16, 1, run, 1);
    const double small_head = time_chain(("1B head " + t).c_str(), head(type, 2048), 8, 1, run, 1) / 8;
    printf("{\"step\":\"%s\",\"8B_tok_s\":%.0f,\"1B_tok_s\":%.0f}\n", t.c_str(), 1 / (layers + last), 1 / (small + small_head));
  }
  // Q4_K_M: half of the v and down matrices are Q6_K, and the head.
  const Layer mixed = llama(4096, 1024, 14336, mr::Q4_K, mr::Q4_K, mr::Q6_K, mr::Q4_K, mr::Q4_K, mr::Q6_K);
  const double a = time_chain("8B Q4_K_M more", mixed, 16, 1, run, 1), b = time_chain("8B Q4_K_M less", plain_layer(true, mr::Q4_K), 16, 1, run, 1);
  const double c = time_chain("8B head Q6_K", head(mr::Q6_K, 4096), 4, 1, run, 1) / 4;
  printf("{\"step\":\"Q4_K_M\",\"8B_tok_s\":%.0f}\n", 1 / (a + b + c));
}

static void time_batch() {
  for (int type : {mr::BF16, mr::Q8_0, mr::Q4_K}) {
    const std::string t = std::string("8B ") + names[type];
    for (auto [tokens, tile] : std::vector<std::pair<int, int>>{{1, 8}, {4, 8}, {8, 8}, {8, 2000}, {16, 16}, {16, 2000}, {32, 32}, {32, 2000}, {64, 2000}, {128, 2000}, {256, 1128}, {256, 1256}})
      time_chain(t.c_str(), plain_layer(true, type), 16, tokens, run, tile);
  }
}

static void time_few() {
  for (int tokens : {16, 32, 64, 128})
    for (int i = 0; i < 4; i++)
      for (int rows : {32, 64, 96, 128, 192, 224, 256})
        for (int splits : {1, 2, 4, 8})
          for (int shared : {112 << 10, 226 << 10}) {
            if (tokens == 128 && shared < 120000 && rows > 128) continue;
            const int tiles[] = {384, 256, 1792, 256}, blocks = (tiles[i] * 16 + rows - 1) / rows * splits;
            if (blocks < 100 || blocks > 540) continue;
            few_rows = rows, few_splits = splits, few_shared = shared;
            printf("{\"rows\":%d,\"splits\":%d,\"shared\":%d}", rows, splits, shared);
            time_chain("8B BF16", plain_layer(true, mr::BF16), 16, tokens, run, 2000, i);
          }
  few_rows = few_splits = 0, few_shared = 226 << 10;
  for (int tokens : {16, 32, 64, 128}) {
    time_chain("8B BF16", plain_layer(true, mr::BF16), 16, tokens, run, 2000);
    time_chain("1B BF16", plain_layer(false, mr::BF16), 16, tokens, run, 2000);
  }
}

static void time_packed() {
  for (int type : {mr::Q4_K, mr::Q6_K, mr::Q8_0})
    for (int tokens : {16, 32, 64}) {
      const std::string t = std::string("8B ") + names[type];
      time_chain(t.c_str(), plain_layer(true, type), 16, tokens, run, tokens == 16 ? 16 : 2000);
      time_chain(t.c_str(), plain_layer(true, type), 16, tokens, run, 3000);
      if (type == mr::Q8_0) continue;
      for (int i = 0; i < 4; i++)
        for (int splits : {1, 2, 4, 8}) {
          packed_splits = splits;
          printf("{\"splits\":%d}", splits);
          time_chain(t.c_str(), plain_layer(true, type), 16, tokens, run, 3000, i);
        }
      packed_splits = 0;
    }
}

static void time_prefill() {
  for (int tokens : {256, 512, 1024, 2048, 8192})
    for (int tile : {1128, 1256}) {
      time_chain("8B BF16", plain_layer(true, mr::BF16), 8, tokens, run, tile);
      if (tile == 1256 && tokens >= 2048) for (int i = 0; i < 4; i++) time_chain("8B BF16", plain_layer(true, mr::BF16), 8, tokens, run, tile, i);
    }
  for (int tokens : {512, 2048}) time_chain("8B Q4_K", plain_layer(true, mr::Q4_K), 8, tokens, run, 1256);
}

int main(int argc, char** argv) {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  cudaDeviceProp p;
  CHECK(cudaGetDeviceProperties(&p, 0));
  sms = p.multiProcessorCount;
  CHECK(cudaStreamCreate(&stream));
  for (int i = 1; i < argc; i++) {
    const std::string what = argv[i];
    if (what == "check" || what == "check-small") {
      check_streams(what == "check-small");
      printf("{\"checks\":%d,\"failures\":%d}\n", checks, failures);
    } else {
      if (!pool) {
        pool_bytes = 20ll << 30;
        CHECK(cudaMalloc(&pool, pool_bytes));
        fill<<<2048, 256>>>(reinterpret_cast<uint32_t*>(pool), pool_bytes / 4, 1);
        CHECK(cudaDeviceSynchronize());
        measure_roof();
      }
      if (what == "narrow") narrow = 2;
      if (what == "single") most_tiles = 1;
      if (what == "many") most_tiles = 64;
      if (what == "decode") time_decode();
      if (what == "batch") time_batch();
      if (what == "few") time_few();
      if (what == "packed") time_packed();
      if (what == "prefill") time_prefill();
    }
  }
  return failures ? 1 : 0;
}
