#include "lepton/peer_exchange.hpp"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "lepton/mpi_check.hpp"
#include "lepton/payload.hpp"
#include "lepton/sum.hpp"

namespace lepton {
namespace {

// MPI promises tags up to 32767; far fewer chunks are in flight.
constexpr std::uint64_t kTagRounds = 16384;

}  // namespace

PeerExchange::PeerExchange(MPI_Comm peers, PipelineOptions options)
    : peers_(peers), options_(options), messages_(peers, options.message_nbytes) {
  if (options_.chunk_values < 1 || options_.depth < 1 || options_.cut_values < 1)
    throw std::invalid_argument("a pipeline needs chunks of at least one value, and one of them in flight");
  constexpr auto block = static_cast<std::int64_t>(kMaxBlock);
  // A payload must fit MPI's int counts; exact values take most bytes.
  const std::int64_t most = INT_MAX / 4 / block * block;
  options_.chunk_values = std::min((options_.chunk_values + block - 1) / block * block, most);
  if (peers_ == MPI_COMM_NULL) return;
  check_mpi(MPI_Comm_size(peers_, &num_peers_), "MPI_Comm_size");
  check_mpi(MPI_Comm_rank(peers_, &peer_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_set_errhandler(peers_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  slots_.resize(static_cast<std::size_t>(options_.depth));
  for (Slot& slot : slots_) {
    slot.scattered.resize(static_cast<std::size_t>(num_peers_));
    slot.gathered.resize(static_cast<std::size_t>(num_peers_));
  }
}

PeerExchange::~PeerExchange() {
  // Only after a failure is anything left. Its memory is about to go, so nothing may arrive there any more.
  int finalized = 1;
  if (MPI_Finalized(&finalized) != MPI_SUCCESS || finalized) return;
  for (Slot& slot : slots_) {
    for (auto* const arrivals : {&slot.scattered, &slot.gathered})
      for (Arrival& arrival : *arrivals)
        for (MPI_Request& request : arrival.requests)
          if (request != MPI_REQUEST_NULL && MPI_Cancel(&request) == MPI_SUCCESS) MPI_Request_free(&request);
    // A send cannot be taken back, so its memory stays for as long as the process lives.
    if (!slot.sends.empty()) static_cast<void>(new std::vector<std::byte>(std::move(slot.outgoing)));
  }
}

std::uint64_t PeerExchange::submit(const PeerSlice& slice) {
  if (num_peers_ == 1) {
    settle(slice);
    return completed_;
  }
  for (std::int64_t at = 0; at < slice.size; at += options_.chunk_values) {
    PeerSlice chunk = slice;
    chunk.values += at;
    if (chunk.residual != nullptr) chunk.residual += at;
    chunk.size = std::min(options_.chunk_values, slice.size - at);
    waiting_.push_back(chunk);
    ++submitted_;
  }
  return submitted_;
}

bool PeerExchange::progress() {
  if (num_peers_ == 1) return false;
  bool moved = false;
  // The oldest first: it frees a slot, and others wait for its second phase.
  for (std::uint64_t sequence = completed_; sequence < admitted_; ++sequence)
    moved |= advance(slots_[sequence % slots_.size()]);
  while (completed_ < admitted_ && slots_[completed_ % slots_.size()].state == State::done) {
    slots_[completed_ % slots_.size()].state = State::free;
    ++completed_;
    moved = true;
  }
  // One at a time, so that what arrived meanwhile is not kept waiting by more encoding.
  if (!waiting_.empty() && admitted_ - completed_ < slots_.size()) {
    Slot& slot = slots_[admitted_ % slots_.size()];
    slot.chunk = waiting_.front();
    slot.sequence = admitted_;
    waiting_.pop_front();
    ++admitted_;
    begin(slot);
    moved = true;
  }
  return moved;
}

bool PeerExchange::advance(Slot& slot) {
  switch (slot.state) {
    case State::free:
    case State::done:
      return false;
    case State::scattering:
      if (!all_arrived(slot.scattered)) return false;
      // Exact values are received into the memory they were sent from.
      if (slot.chunk.codec == Codec::exact && !test_all(slot.sends)) return false;
      reduce(slot);
      return true;
    case State::gathering: {
      const bool moved = take_gathered(slot);
      const bool all =
          std::all_of(slot.gathered.begin(), slot.gathered.end(), [](const Arrival& a) { return a.requests.empty(); });
      if (!all || !test_all(slot.sends)) return moved;
      slot.state = State::done;
      return true;
    }
  }
  return false;
}

PeerExchange::Piece PeerExchange::piece(const PeerSlice& chunk, int peer) const {
  const std::int64_t cut = std::max(static_cast<std::int64_t>(block_values(chunk.codec)), options_.cut_values);
  const Extent extent = part({0, chunk.size}, num_peers_, peer, cut);
  return {extent.lo, extent.size(), max_payload_nbytes(chunk.codec, static_cast<std::size_t>(extent.size()))};
}

int PeerExchange::tag(const Slot& slot, int phase) const {
  return static_cast<int>(slot.sequence % kTagRounds) * 2 + phase;
}

void PeerExchange::send(Slot& slot, const void* data, std::size_t nbytes, int peer, int phase) {
  messages_.send(slot.sends, data, nbytes, has_fixed_nbytes(slot.chunk.codec), peer, tag(slot, phase));
}

void PeerExchange::receive(const Slot& slot, Arrival& arrival, void* data, std::size_t nbytes, int distance,
                           int phase) {
  messages_.expect(arrival, data, nbytes, has_fixed_nbytes(slot.chunk.codec), leader(distance), tag(slot, phase));
}

bool PeerExchange::all_arrived(std::vector<Arrival>& arrivals) {
  bool all = true;
  for (Arrival& arrival : arrivals) all &= messages_.arrived(arrival);
  return all;
}

void PeerExchange::settle(const PeerSlice& chunk) {
  if (chunk.residual == nullptr) return;
  for (std::int64_t i = 0; i < chunk.size; ++i) {
    const float x = chunk.values[i] + chunk.residual[i];
    if (std::isfinite(x)) chunk.residual[i] = 0.0f;
    chunk.values[i] = x;
  }
}

void PeerExchange::begin(Slot& slot) {
  const PeerSlice& chunk = slot.chunk;
  const std::size_t own_nbytes = piece(chunk, peer_).nbytes;
  slot.incoming.resize(std::max(slot.incoming.size(), own_nbytes * static_cast<std::size_t>(num_peers_ - 1)));
  for (int d = 1; d < num_peers_; ++d) {
    receive(slot, slot.scattered[static_cast<std::size_t>(d)],
            slot.incoming.data() + own_nbytes * static_cast<std::size_t>(d - 1), own_nbytes, d, 0);
  }
  if (chunk.codec == Codec::exact) settle(chunk);
  if (chunk.codec != Codec::exact) {
    std::size_t others = 0;
    for (int d = 1; d < num_peers_; ++d) others += piece(chunk, follower(d)).nbytes;
    slot.outgoing.resize(std::max(slot.outgoing.size(), others + own_nbytes));
    slot.incoming_reduced.resize(std::max(slot.incoming_reduced.size(), others));
    std::byte* in = slot.incoming_reduced.data();
    for (int d = 1; d < num_peers_ && chunk.gather; ++d) {
      const std::size_t nbytes = piece(chunk, leader(d)).nbytes;
      receive(slot, slot.gathered[static_cast<std::size_t>(d)], in, nbytes, d, 1);
      in += nbytes;
    }
  }
  scatter(slot);
  slot.state = State::scattering;
}

// Phase one: every peer gets its piece of this node's values. Peers start with different ones, so that no link is
// asked for by all at once.
void PeerExchange::scatter(Slot& slot) {
  const PeerSlice& chunk = slot.chunk;
  std::byte* out = slot.outgoing.data();
  for (int d = 1; d < num_peers_; ++d) {
    const int to = follower(d);
    const Piece theirs = piece(chunk, to);
    if (chunk.codec == Codec::exact) {
      send(slot, chunk.values + theirs.lo, theirs.nbytes, to, 0);
      continue;
    }
    send(slot, out, write(chunk, theirs, out), to, 0);
    out += theirs.nbytes;
  }
}

void PeerExchange::add_in_peer_order(Slot& slot, const Piece& mine) {
  const auto n = static_cast<std::size_t>(mine.size);
  float* const own = slot.chunk.values + mine.lo;
  const Codec codec = slot.chunk.codec;
  const auto payload = [&](int p) -> const Arrival& {
    return slot.scattered[static_cast<std::size_t>((peer_ - p + num_peers_) % num_peers_)];
  };
  const auto add = [&](int p, float* sum) { add_payload(codec, payload(p).data, payload(p).nbytes, n, sum); };
  // An addition of two may be turned around, so the first two peers add straight into their own values.
  if (peer_ <= 1) {
    for (int p = 0; p < num_peers_; ++p)
      if (p != peer_) add(p, own);
    return;
  }
  total_.resize(std::max(total_.size(), n));
  read_payload(codec, payload(0).data, payload(0).nbytes, n, total_.data());
  for (int p = 1; p < peer_; ++p) add(p, total_.data());
  add_to(total_.data(), n, own);  // turned around again: own + (all before it)
  for (int p = peer_ + 1; p < num_peers_; ++p) add(p, own);
}

// Phase two: the own piece is summed in peer order, encoded once, and given to all.
void PeerExchange::reduce(Slot& slot) {
  const PeerSlice& chunk = slot.chunk;
  const Piece mine = piece(chunk, peer_);
  float* const sum = chunk.values + mine.lo;
  add_in_peer_order(slot, mine);
  slot.state = State::gathering;
  if (!chunk.gather) {
    if (chunk.codec != Codec::exact && chunk.residual != nullptr)
      settle({sum, mine.size, chunk.codec, chunk.residual + mine.lo, false});
    return;
  }
  const void* payload = sum;
  std::size_t nbytes = mine.nbytes;
  if (chunk.codec == Codec::exact) {
    for (int d = 1; d < num_peers_; ++d) {
      const Piece theirs = piece(chunk, leader(d));
      receive(slot, slot.gathered[static_cast<std::size_t>(d)], chunk.values + theirs.lo, theirs.nbytes, d, 1);
    }
  } else {
    std::byte* const out = slot.outgoing.data() + (slot.outgoing.size() - mine.nbytes);
    nbytes = write(chunk, mine, out);
    payload = out;
  }
  for (int d = 1; d < num_peers_; ++d) send(slot, payload, nbytes, follower(d), 1);
  if (chunk.codec != Codec::exact)
    read_payload(chunk.codec, static_cast<const std::byte*>(payload), nbytes, static_cast<std::size_t>(mine.size), sum);
}

std::size_t PeerExchange::write(const PeerSlice& chunk, const Piece& piece, std::byte* out) {
  float* const residual = chunk.residual != nullptr ? chunk.residual + piece.lo : nullptr;
  return write_payload(chunk.codec, chunk.share, chunk.values + piece.lo, residual,
                       static_cast<std::size_t>(piece.size), out);
}

Extent PeerExchange::own_piece(std::int64_t size, Codec codec) const {
  PeerSlice slice;
  slice.size = size;
  slice.codec = codec;
  const Piece mine = piece(slice, peer_);
  return {mine.lo, mine.lo + mine.size};
}

// Decodes what has arrived whole of the second phase.
bool PeerExchange::take_gathered(Slot& slot) {
  if (slot.chunk.codec == Codec::exact) return all_arrived(slot.gathered);
  bool moved = false;
  for (int d = 1; d < num_peers_; ++d) {
    const Piece theirs = piece(slot.chunk, leader(d));
    Arrival& arrival = slot.gathered[static_cast<std::size_t>(d)];
    if (!arrival.requests.empty() && messages_.arrived(arrival)) {
      read_payload(slot.chunk.codec, arrival.data, arrival.nbytes, static_cast<std::size_t>(theirs.size),
                   slot.chunk.values + theirs.lo);
      moved = true;
    }
  }
  return moved;
}

std::vector<int> PeerExchange::missing() const {
  std::vector<int> peers;
  if (completed_ == admitted_) return peers;
  const Slot& slot = slots_[completed_ % slots_.size()];
  const auto& arrivals = slot.state == State::scattering ? slot.scattered : slot.gathered;
  for (int d = 1; d < num_peers_; ++d)
    if (!arrivals[static_cast<std::size_t>(d)].requests.empty()) peers.push_back(leader(d));
  std::sort(peers.begin(), peers.end());
  return peers;
}

}  // namespace lepton
