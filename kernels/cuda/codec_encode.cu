#include "lepton/codec_warps.hpp"

namespace lepton {
namespace {

// One warp a block; a thread block holds whole warps.
template <class Form>
__device__ void encode_blocks(const float* x, long long n, unsigned char* out) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpLanes;
  const long long warps_per_group = blockDim.x / kWarpLanes;
  const long long num_blocks = (n + Form::kBlock - 1) / Form::kBlock;
  unsigned char* const codes = out + Form::kScaleNbytes * num_blocks;
  for (long long block = blockIdx.x * warps_per_group + threadIdx.x / kWarpLanes; block < num_blocks;
       block += gridDim.x * warps_per_group) {
    const long long start = block * Form::kBlock;
    const int count = n - start < Form::kBlock ? static_cast<int>(n - start) : Form::kBlock;
    unsigned char* const own_codes = codes + block * Form::code_nbytes(Form::kBlock);
    const BlockScale s = Form::scale(x + start, count, lane);
    if (lane == 0) {
      unsigned char* const scale = out + Form::kScaleNbytes * block;
      if (Form::kScaleNbytes == 4) store_bytes(scale, bits_of(s.scale));
      if (Form::kScaleNbytes == 2) store_bytes(scale, static_cast<unsigned short>(bits_of(s.scale) >> 16));
    }
    if (s.codes_per_unit != 0.0f) {  // the same in all lanes
      Form::put_codes(x + start, count, lane, s.codes_per_unit, own_codes);
    } else {
      for (int i = lane; i < Form::code_nbytes(count); i += kWarpLanes) own_codes[i] = 0;
    }
  }
}

}  // namespace
}  // namespace lepton

// See lepton/codec.hpp for the codecs: 1 bf16, 2 int8, 3 fp16, 4 int4, 5 sign1. Threads a group: a multiple of 32.
extern "C" __global__ void codec_encode(int codec, const float* __restrict__ x, long long n,
                                        unsigned char* __restrict__ out) {
  using namespace lepton;
  if (codec == 2) encode_blocks<Int8Warp>(x, n, out);
  if (codec == 4) encode_blocks<Int4Warp>(x, n, out);
  if (codec == 5) encode_blocks<Sign1Warp>(x, n, out);
  if (codec != 1 && codec != 3) return;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    store_bytes(out + 2 * i, codec == 1 ? bf16_bits(bits_of(x[i])) : fp16_bits(bits_of(x[i])));
  }
}
