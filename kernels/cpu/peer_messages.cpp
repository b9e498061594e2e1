#include "lepton/peer_messages.hpp"

#include <algorithm>
#include <climits>

#include "lepton/mpi_check.hpp"

namespace lepton {

bool test_all(Requests& requests) {
  if (requests.empty()) return true;
  int complete = 0;
  check_mpi(MPI_Testall(static_cast<int>(requests.size()), requests.data(), &complete, MPI_STATUSES_IGNORE),
            "MPI_Testall");
  if (complete) requests.clear();
  return complete != 0;
}

PeerMessages::PeerMessages(MPI_Comm peers, std::int64_t message_nbytes)
    : peers_(peers), longest_(message_nbytes > 0 ? static_cast<std::size_t>(message_nbytes) : INT_MAX) {}

void PeerMessages::send(Requests& sends, const void* data, std::size_t nbytes, bool is_fixed, int peer, int tag) {
  const std::size_t end = nbytes > 0 && !is_fixed ? nbytes + 1 : nbytes;
  for (std::size_t at = 0; at < end; at += longest_) {
    sends.emplace_back(MPI_REQUEST_NULL);
    check_mpi(MPI_Isend(static_cast<const std::byte*>(data) + at, static_cast<int>(std::min(longest_, nbytes - at)),
                        MPI_BYTE, peer, tag, peers_, &sends.back()),
              "MPI_Isend");
  }
  sent_nbytes_ += static_cast<std::int64_t>(nbytes);
}

void PeerMessages::expect(Arrival& arrival, void* data, std::size_t nbytes, bool is_fixed, int peer, int tag) {
  arrival.requests.clear();
  arrival.data = static_cast<std::byte*>(data);
  arrival.room = nbytes;
  arrival.nbytes = 0;
  arrival.is_fixed = is_fixed;
  arrival.peer = peer;
  arrival.tag = tag;
  if (!is_fixed) {
    if (nbytes > 0) receive_next(arrival);
    return;
  }
  while (arrival.nbytes < nbytes) {
    receive_next(arrival);
    arrival.nbytes += std::min(longest_, nbytes - arrival.nbytes);
  }
}

void PeerMessages::receive_next(Arrival& arrival) {
  const std::size_t nbytes = std::min(longest_, arrival.room - arrival.nbytes);
  arrival.requests.emplace_back(MPI_REQUEST_NULL);
  check_mpi(MPI_Irecv(arrival.data + arrival.nbytes, static_cast<int>(nbytes), MPI_BYTE, arrival.peer, arrival.tag,
                      peers_, &arrival.requests.back()),
            "MPI_Irecv");
}

bool PeerMessages::arrived(Arrival& arrival) {
  if (arrival.is_fixed) return test_all(arrival.requests);
  while (!arrival.requests.empty()) {
    int complete = 0, nbytes = 0;
    MPI_Status status;
    check_mpi(MPI_Test(&arrival.requests.back(), &complete, &status), "MPI_Test");
    if (!complete) return false;
    check_mpi(MPI_Get_count(&status, MPI_BYTE, &nbytes), "MPI_Get_count");
    arrival.requests.clear();
    arrival.nbytes += static_cast<std::size_t>(nbytes);
    if (static_cast<std::size_t>(nbytes) == longest_) receive_next(arrival);
  }
  return true;
}

}  // namespace lepton
