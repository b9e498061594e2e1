#include "lepton/progress_thread.hpp"

#include <mpi.h>
#include <pthread.h>
#include <signal.h>

#include <utility>

#include "lepton/mpi_check.hpp"

namespace lepton {
namespace {

constexpr double kLongSleep_s = 0.1;      // any change in the node wakes the sleeper
constexpr double kShortSleep_s = 100e-6;  // a fifth of what a message of 60,000 bytes takes at 1 Gbit/s

// Attributes of MPI_COMM_SELF are deleted before MPI_Finalize does anything else (MPI 4.1, 11.2.4).
int stop_at_finalize(MPI_Comm, int, void* thread, void*) {
  static_cast<ProgressThread*>(thread)->stop();
  return MPI_SUCCESS;
}

}  // namespace

void ProgressThread::begin(const Signals& signals, Engine engine) {
  check_mpi(MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, stop_at_finalize, &keyval_, nullptr),
            "MPI_Comm_create_keyval");
  check_mpi(MPI_Comm_set_attr(MPI_COMM_SELF, keyval_, this), "MPI_Comm_set_attr");
  // Signals are for the main thread, which may be asleep and has to notice them.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  runs_ = true;
  thread_ = std::thread([this, &signals, engine = std::move(engine)] { run(signals, engine); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ProgressThread::~ProgressThread() {
  if (!runs_) return;
  int finalized = 1;
  if (MPI_Finalized(&finalized) == MPI_SUCCESS && !finalized) {
    MPI_Comm_delete_attr(MPI_COMM_SELF, keyval_);  // stops the thread
    MPI_Comm_free_keyval(&keyval_);
  }
  stop();
}

void ProgressThread::stop() {
  if (!runs_) return;
  stopping_ = true;
  wake();
  thread_.join();
  runs_ = false;
}

std::unique_lock<std::mutex> ProgressThread::lock() {
  std::unique_lock<std::mutex> held(mutex_);
  if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
  return held;
}

void ProgressThread::wake() {
  if (!runs_) return;
  {
    const std::lock_guard<std::mutex> held(wake_mutex_);
    ++wakes_;
  }
  wake_.notify_one();
}

void ProgressThread::run(const Signals& signals, const Engine& engine) {
  while (!stopping_) {
    std::uint64_t seen = 0;
    {
      const std::lock_guard<std::mutex> held(wake_mutex_);
      seen = wakes_;
    }
    const std::uint32_t ticket = signals.ticket();
    bool works = false, moved = false, exchanging = false;
    if (callers_ == 0) {
      const std::lock_guard<std::mutex> held(mutex_);
      works = !failure_ && engine.busy();
      try {
        moved = works && engine.advance();
      } catch (...) {
        failure_ = std::current_exception();
      }
      exchanging = engine.exchanging();
    }
    if (!works) {
      std::unique_lock<std::mutex> held(wake_mutex_);
      wake_.wait(held, [&] { return wakes_ != seen || stopping_; });
    } else if (!moved) {
      signals.sleep(ticket, exchanging ? kShortSleep_s : kLongSleep_s, 0.0);
    }
  }
}

}  // namespace lepton
