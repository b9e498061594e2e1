// Dropout of fp32 rows by counters, so that a mask does not depend on who draws it. All functions are thread-safe,
// allocate nothing and give the same bits on every CPU.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lepton {

// Which elements of an array [rows, n] are which elements of the global array [any, row_size], and what decides on
// them.
struct DropoutRows {
  std::uint64_t key;        // of the layer
  std::uint64_t step;       // upper half of the Philox counter
  std::uint64_t first_row;  // global number of the first row
  std::uint64_t row_size;   // elements of a row, globally
  std::uint64_t row_start;  // where the elements that are here begin in their row
  std::size_t rows;
  std::size_t n;            // elements of a row that are here
  std::uint32_t threshold;  // an element is kept when its random word is not below it
};

// mask[i] = 1 where element i is kept, else 0. The word of element e of row r is word k % 4 of Philox counter k / 4
// with k = r * row_size + e.
void dropout_mask(const DropoutRows& at, std::uint8_t* mask);

// The mask, and y = x * (kept ? scale : 0).
void dropout(const DropoutRows& at, const float* x, float scale, float* y, std::uint8_t* mask);

// y = x * (mask ? scale : 0), n values.
void apply_mask(const float* x, const std::uint8_t* mask, float scale, float* y, std::size_t n);

}  // namespace lepton
