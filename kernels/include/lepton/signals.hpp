// Counters in shared memory by which the ranks of a node tell each other how far they are.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace lepton {

// Other ranks stayed away longer than allowed.
class StallError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A table of counters, one row a rank, in zeroed memory that all ranks of the group map. A rank
// writes its own row only; waiting is a short spin, then a futex, since ranks may outnumber cores.
class Signals {
 public:
  // Bytes of shared memory that a table needs.
  static std::size_t nbytes(int num_ranks, int num_counters);

  // `spin_s`: how long to poll before sleeping; 0 where ranks outnumber cores.
  Signals(std::byte* memory, std::size_t memory_nbytes, int num_ranks, int num_counters, int rank, double spin_s);

  // Sets this rank's counter and wakes whoever waits. Release: what was written before is seen.
  void set(int counter, std::uint32_t value);

  // True when the counter of every rank has reached the value. Acquire.
  bool all_reached(int counter, std::uint32_t value) const;

  // A ticket for `sleep`: any `set` after it was taken ends the sleep at once.
  std::uint32_t ticket() const;
  // Returns when a counter changed since the ticket was taken, or after `at_most_s`.
  void sleep(std::uint32_t ticket, double at_most_s) const { sleep(ticket, at_most_s, spin_s_); }
  void sleep(std::uint32_t ticket, double at_most_s, double spin_s) const;

  // Blocks until all ranks have reached the value; throws StallError naming those that did not.
  void wait(int counter, std::uint32_t value, double timeout_s, const char* what) const;

  // The ranks that have not reached the value.
  std::vector<int> behind(int counter, std::uint32_t value) const;
  // The same for messages: "1, 3".
  std::string missing(int counter, std::uint32_t value) const;

 private:
  struct Header;
  std::atomic<std::uint32_t>& at(int rank, int counter) const;

  Header* header_;
  std::byte* rows_;
  std::size_t row_nbytes_;
  int num_ranks_;
  int rank_;
  double spin_s_;
};

}  // namespace lepton
