#include "lepton/signals.hpp"

#include <sched.h>
#include <time.h>

#include <chrono>
#include <climits>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lepton {
namespace {

constexpr std::size_t kCacheLine = 64;  // rows of different ranks never share one

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::size_t round_up(std::size_t nbytes) { return (nbytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

timespec to_timespec(double s) {
  timespec t;
  t.tv_sec = static_cast<time_t>(s);
  t.tv_nsec = static_cast<long>((s - static_cast<double>(t.tv_sec)) * 1e9);
  return t;
}

static_assert(std::atomic<std::uint32_t>::is_always_lock_free, "counters are shared between processes");
static_assert(sizeof(std::atomic<std::uint32_t>) == 4, "a futex word has 32 bits");

}  // namespace

struct alignas(kCacheLine) Signals::Header {
  std::atomic<std::uint32_t> event;     // counts all changes; the futex word
  std::atomic<std::uint32_t> sleepers;  // so that nobody pays for waking nobody
};

std::size_t Signals::nbytes(int num_ranks, int num_counters) {
  return sizeof(Header) + static_cast<std::size_t>(num_ranks) * round_up(4 * static_cast<std::size_t>(num_counters));
}

Signals::Signals(std::byte* memory, std::size_t memory_nbytes, int num_ranks, int num_counters, int rank, double spin_s)
    : header_(reinterpret_cast<Header*>(memory)),
      rows_(memory + sizeof(Header)),
      row_nbytes_(round_up(4 * static_cast<std::size_t>(num_counters))),
      num_ranks_(num_ranks),
      rank_(rank),
      spin_s_(spin_s) {
  if (reinterpret_cast<std::uintptr_t>(memory) % kCacheLine != 0)
    throw std::invalid_argument("the memory of signals must be aligned to 64 bytes");
  if (memory_nbytes < nbytes(num_ranks, num_counters))
    throw std::invalid_argument("the memory of signals is too small: expected " +
                                std::to_string(nbytes(num_ranks, num_counters)) + " bytes, received " +
                                std::to_string(memory_nbytes));
  if (rank < 0 || rank >= num_ranks) throw std::invalid_argument("the rank of signals is outside its group");
}

std::atomic<std::uint32_t>& Signals::at(int rank, int counter) const {
  std::byte* const row = rows_ + static_cast<std::size_t>(rank) * row_nbytes_;
  return reinterpret_cast<std::atomic<std::uint32_t>*>(row)[counter];
}

void Signals::set(int counter, std::uint32_t value) {
  at(rank_, counter).store(value, std::memory_order_release);
  // Sequentially consistent on purpose: a sleeper raises `sleepers` before it checks `event`, and
  // we raise `event` before we check `sleepers`, so one of the two always sees the other.
  header_->event.fetch_add(1, std::memory_order_seq_cst);
#ifdef __linux__
  if (header_->sleepers.load(std::memory_order_seq_cst) > 0)
    ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&header_->event), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#endif
}

bool Signals::all_reached(int counter, std::uint32_t value) const {
  for (int rank = 0; rank < num_ranks_; ++rank) {
    // Signed distance, so that counters may wrap around.
    if (static_cast<std::int32_t>(at(rank, counter).load(std::memory_order_acquire) - value) < 0) return false;
  }
  return true;
}

std::uint32_t Signals::ticket() const { return header_->event.load(std::memory_order_seq_cst); }

void Signals::sleep(std::uint32_t ticket, double at_most_s, double spin_s) const {
  const auto start = Clock::now();
  while (spin_s > 0 && seconds_since(start) < spin_s) {
    if (header_->event.load(std::memory_order_acquire) != ticket) return;
  }
#ifdef __linux__
  const timespec limit = to_timespec(at_most_s);
  header_->sleepers.fetch_add(1, std::memory_order_seq_cst);
  ::syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&header_->event), FUTEX_WAIT, ticket, &limit, nullptr, 0);
  header_->sleepers.fetch_sub(1, std::memory_order_seq_cst);
#else
  const timespec pause = to_timespec(50e-6 < at_most_s ? 50e-6 : at_most_s);
  if (header_->event.load(std::memory_order_acquire) == ticket) ::nanosleep(&pause, nullptr);
#endif
}

void Signals::wait(int counter, std::uint32_t value, double timeout_s, const char* what) const {
  const auto start = Clock::now();
  for (;;) {
    const std::uint32_t now = ticket();
    if (all_reached(counter, value)) return;
    const double waited_s = seconds_since(start);
    if (waited_s > timeout_s)
      throw StallError("waited " + std::to_string(static_cast<int>(waited_s)) + " s for " + what + " of data rank(s) " +
                       missing(counter, value) + " of this node");
    sleep(now, 0.1);  // a bound, in case a sleeper died between its two counts
  }
}

std::vector<int> Signals::behind(int counter, std::uint32_t value) const {
  std::vector<int> ranks;
  for (int rank = 0; rank < num_ranks_; ++rank)
    if (static_cast<std::int32_t>(at(rank, counter).load(std::memory_order_acquire) - value) < 0) ranks.push_back(rank);
  return ranks;
}

std::string Signals::missing(int counter, std::uint32_t value) const {
  std::string names;
  for (const int rank : behind(counter, value)) names += (names.empty() ? "" : ", ") + std::to_string(rank);
  return names;
}

}  // namespace lepton
