// Greedy decoding by ExecuTorch alone, as an app would: no Python in it, no MobileKit.
//
//   run_pte MODEL.pte COUNT TOKEN…    prints COUNT tokens that continue the prompt

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

using executorch::extension::from_blob;
using executorch::extension::Module;

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s MODEL.pte COUNT TOKEN...\n", argv[0]);
    return 2;
  }
  Module module(argv[1]);
  std::vector<int64_t> pending;
  for (int i = 3; i < argc; ++i) pending.push_back(std::atoll(argv[i]));
  int64_t position = 0;
  for (int left = std::atoi(argv[2]); left > 0; --left) {
    const auto length = static_cast<int32_t>(pending.size());
    auto tokens = from_blob(pending.data(), {1, length}, executorch::aten::ScalarType::Long);
    auto start = from_blob(&position, {1}, executorch::aten::ScalarType::Long);
    const auto result = module.forward({*tokens, *start});
    if (!result.ok()) {
      std::fprintf(stderr, "forward failed with error %d\n", static_cast<int>(result.error()));
      return 1;
    }
    const auto logits = result->at(0).toTensor();  // of the last token only: (1, 1, V)
    const float* values = logits.const_data_ptr<float>();
    const int64_t next = std::max_element(values, values + logits.numel()) - values;
    std::printf("%lld\n", static_cast<long long>(next));
    position += length;
    pending.assign(1, next);
  }
  return 0;
}
