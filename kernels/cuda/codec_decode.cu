#include "lepton/codec_warps.hpp"

namespace lepton {
namespace {

template <class Form>
__device__ float block_value(const unsigned char* payload, long long n, long long i) {
  const long long num_blocks = (n + Form::kBlock - 1) / Form::kBlock;
  const long long block = i / Form::kBlock;
  const unsigned int stored = load_bytes(payload + Form::kScaleNbytes * block, Form::kScaleNbytes);
  const float scale = float_of(Form::kScaleNbytes == 4 ? stored : stored << 16);
  const unsigned char* const codes =
      payload + Form::kScaleNbytes * num_blocks + block * Form::code_nbytes(Form::kBlock);
  return Form::value(codes, static_cast<int>(i % Form::kBlock), scale);
}

__device__ float value(int codec, const unsigned char* payload, long long n, long long i) {
  switch (codec) {
    case 1:
      return float_of(fp32_bits(static_cast<unsigned short>(load_bytes(payload + 2 * i, 2))));
    case 2:
      return block_value<Int8Warp>(payload, n, i);
    case 3:
      return float_of(fp16_to_fp32_bits(static_cast<unsigned short>(load_bytes(payload + 2 * i, 2))));
    case 4:
      return block_value<Int4Warp>(payload, n, i);
    default:
      return block_value<Sign1Warp>(payload, n, i);
  }
}

}  // namespace
}  // namespace lepton

// out = values of the payload, or out += values; codecs as in codec_encode.cu.
extern "C" __global__ void codec_decode(int codec, const unsigned char* __restrict__ payload, long long n, int add,
                                        float* __restrict__ out) {
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const float value = lepton::value(codec, payload, n, i);
    out[i] = add != 0 ? out[i] + value : value;
  }
}
