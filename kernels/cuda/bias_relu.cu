// y[row, column] = max(y[row, column] + b[column], 0) in place; NaN stays NaN, as in np.maximum.
extern "C" __global__ void bias_relu(float* __restrict__ y, const float* __restrict__ b, long long num_rows,
                                     long long num_columns) {
  const long long n = num_rows * num_columns;
  const long long stride = static_cast<long long>(gridDim.x) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += stride) {
    const float value = y[i] + b[i % num_columns];
    y[i] = value < 0.0f ? 0.0f : value;
  }
}
