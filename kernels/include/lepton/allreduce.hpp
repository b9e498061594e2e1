// The sum of arrays over all ranks: exactly through shared memory inside a node, by a PeerExchange between nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "lepton/extent.hpp"
#include "lepton/peer_exchange.hpp"
#include "lepton/progress_thread.hpp"
#include "lepton/signals.hpp"

namespace lepton {

struct AllReduceOptions {
  int rank = 0;       // this rank among the ranks of the node
  int num_ranks = 1;  // ranks of the node
  int num_nodes = 1;
  int num_owners = 1;  // the first this many ranks of every node own slices (nodes may differ in ranks)
  PipelineOptions pipeline;
  std::vector<int> node_ranks;  // what messages call the ranks of the node, and those at the peers' places
  std::vector<int> peer_ranks;
  double timeout_s = 300;
  double spin_s = 0;
  MPI_Comm world = MPI_COMM_NULL;  // all ranks, in an order of their own; for sum_by_mpi only
  bool background = false;         // a thread makes progress between start and finish; needs MPI_THREAD_MULTIPLE
};

// One array to sum. All ranks start the same operations, alike in size, codec, scale and share, in the same order.
struct Reduction {
  const float* input = nullptr;  // null: this rank adds zeros; may be `output`
  float* output = nullptr;
  std::int64_t size = 0;
  Codec codec = Codec::exact;
  float* residual = nullptr;  // null, or error feedback: [size], of which the owned slice is used
  float scale = 1.0f;         // of the sum
  double share = 1.0;         // of the values that topk sends
};

// One rank's part. The array is cut into a slice for each owner of a node, and these into chunks that follow each other
// through: copy into the segment, sum of the own slice in rank order, exchange with the other nodes, copy out.
class AllReduce {
 public:
  // signals: zeroed memory shared by the node; staging: likewise, of staging_values floats.
  AllReduce(std::byte* signals, std::size_t signal_nbytes, float* staging, MPI_Comm peers, AllReduceOptions options);
  AllReduce(const AllReduce&) = delete;
  AllReduce& operator=(const AllReduce&) = delete;

  static std::size_t signal_nbytes(int num_ranks);
  static std::size_t staging_values(const AllReduceOptions& options);
  // Slice `owner` of an array.
  static Extent slice(std::int64_t size, int num_owners, int owner);

  // Queues a reduction and returns its number. Its memory must stay valid until it is finished.
  std::uint64_t start(const Reduction& reduction);
  // Start and finish in one call; returns the seconds that it took.
  double sum(const Reduction& reduction);
  // The same by MPI_Allreduce in place: no order of its own, and none of what start does.
  double sum_by_mpi(float* values, std::int64_t size, float scale);
  // Does whatever can be done without waiting; true if anything was.
  bool progress();
  // Blocks until a reduction, and so all before it, is complete here.
  void finish(std::uint64_t number);
  bool done(std::uint64_t number);

  std::int64_t sent_nbytes();
  double wait_s() const { return wait_s_; }

 private:
  struct Operation {
    Reduction reduction;
    std::uint64_t number, first, last;  // chunks [first, last)
    std::int64_t chunk_values;          // of one owner
  };
  struct Submitted {
    std::uint64_t ticket;
    float* values;
    std::int64_t size;
    float scale;
  };

  bool advance();
  bool copy_in();
  bool sum();
  bool publish_reduced();
  bool copy_out();
  bool advance_alone();
  void sum_to_output(const Operation& operation) const;
  void retire();
  const Operation& operation(std::uint64_t chunk) const;
  Extent extent(const Operation& operation, std::uint64_t chunk, int owner) const;
  float* staged(int rank, std::uint64_t chunk) const;
  float* result(std::uint64_t chunk) const { return staged(options_.num_ranks, chunk); }
  bool sums_everywhere(const Operation& operation) const;
  bool reached(int counter, std::uint64_t value) const;
  std::string absent() const;

  AllReduceOptions options_;
  Signals signals_;
  float* staging_;
  PeerExchange peers_;
  std::int64_t chunk_values_;  // the longest chunk of one owner
  std::deque<Operation> operations_;
  std::deque<Submitted> submitted_;
  std::uint64_t num_started_ = 0, num_done_ = 0, num_chunks_ = 0;
  std::uint64_t next_in_ = 0, next_sum_ = 0, next_reduced_ = 0, next_out_ = 0;
  double wait_s_ = 0;
  ProgressThread background_;  // the last, since it uses the others
};

}  // namespace lepton
