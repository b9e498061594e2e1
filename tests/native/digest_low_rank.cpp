// Factors of low rank: projections, rebuilt matrices, what is owed, orthonormal bases.
#include "digest.hpp"

#include "lepton/low_rank.hpp"

using namespace lepton;
using digest::make_extremes;
using digest::make_values;
using digest::show;

namespace {

void show_steps(const LowRankShape& shape, const std::vector<float>& x, const std::string& of) {
  // A run that begins and ends within rows.
  const std::size_t first = shape.columns / 2, count = shape.rows * shape.columns - shape.columns;
  auto rows = make_values(shape.rank * shape.rows, 2), columns = make_values(shape.rank * shape.columns, 3);
  auto to_rows = rows, to_columns = columns, owed = make_values(count, 4);
  low_rank_project_rows(shape, x.data(), first, count, columns.data(), to_rows.data());
  show("project_rows" + of, to_rows);
  low_rank_project_columns(shape, x.data(), first, count, rows.data(), to_columns.data());
  show("project_columns" + of, to_columns);
  auto rebuilt = x;
  low_rank_rebuild(shape, rebuilt.data(), first, count, rows.data(), columns.data(), 0.3f, owed.data(), 0.7f);
  show("rebuild" + of, rebuilt);
  show("owed" + of, owed);
  orthogonalise(rows.data(), shape.rank, shape.rows);
  show("orthogonalise" + of, rows);
}

}  // namespace

int main() {
  for (const LowRankShape& shape : {LowRankShape{61, 1003, 4}, LowRankShape{301, 27, 3}, LowRankShape{5, 7, 6}}) {
    const std::string of = " of " + std::to_string(shape.rows) + " rows";
    show_steps(shape, make_values(shape.rows * shape.columns, 1), of);
    show_steps(shape, make_extremes(shape.rows * shape.columns, 1), of + " of extremes");
  }
}
