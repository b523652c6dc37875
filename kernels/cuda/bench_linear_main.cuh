// Owns: what bench_linear runs, by its arguments.
#pragma once

static void time_streams() {
  const auto head = [](int type, int cols) { return Layer{{cols, {{{type, 128256}}, mr::store_y}}}; };
  for (int type : {mr::BF16, mr::Q8_0, mr::Q4_0, mr::Q4_K, mr::Q6_K, mr::F16, mr::Q5_K}) {
    const std::string t = names[type];
    const double layers = time_chain(("8B " + t).c_str(), plain_layer(true, type), 32, 1, run, 8);
    for (int i = 0; i < 4; i++) time_chain(("8B " + t).c_str(), plain_layer(true, type), 16, 1, run, 8, i);
    const double last = time_chain(("8B head " + t).c_str(), head(type, 4096), 4, 1, run, 8) / 4;
    const double small = time_chain(("1B " + t).c_str(), plain_layer(false, type), 16, 1, run, 8);
    const double small_head = time_chain(("1B head " + t).c_str(), head(type, 2048), 8, 1, run, 8) / 8;
    printf("{\"step\":\"%s\",\"8B_tok_s\":%.0f,\"1B_tok_s\":%.0f}\n", t.c_str(), 1 / (layers + last), 1 / (small + small_head));
  }
  // Q4_K_M: half of the v and down matrices are Q6_K, and the head.
  const Layer mixed = llama(4096, 1024, 14336, mr::Q4_K, mr::Q4_K, mr::Q6_K, mr::Q4_K, mr::Q4_K, mr::Q6_K);
  const double a = time_chain("8B Q4_K_M more", mixed, 16, 1, run, 8), b = time_chain("8B Q4_K_M less", plain_layer(true, mr::Q4_K), 16, 1, run, 8);
  const double c = time_chain("8B head Q6_K", head(mr::Q6_K, 4096), 4, 1, run, 8) / 4;
  printf("{\"step\":\"Q4_K_M\",\"8B_tok_s\":%.0f}\n", 1 / (a + b + c));
  for (int type : {mr::BF16, mr::Q8_0, mr::Q4_K, mr::Q6_K}) {
    const std::string t = std::string("8B ") + names[type];
    for (auto [tokens, tile] : std::vector<std::pair<int, int>>{{2, 8}, {8, 8}, {8, 16}, {16, 16}, {32, 32}, {64, 64}, {128, 64}})
      time_chain(t.c_str(), plain_layer(true, type), 16, tokens, run, tile);
  }
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
      if (what == "time") time_streams();
    }
  }
  return failures ? 1 : 0;
}
