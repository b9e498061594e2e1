// Every MPI return code is looked at: communicators of this project return errors instead of ending the job.
#pragma once

#include <mpi.h>

#include <stdexcept>
#include <string>

namespace lepton {

// Throws std::runtime_error with MPI's own text unless `code` is MPI_SUCCESS.
inline void check_mpi(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw std::runtime_error(std::string(call) + " failed: " + std::string(text, static_cast<std::size_t>(length)));
}

}  // namespace lepton
