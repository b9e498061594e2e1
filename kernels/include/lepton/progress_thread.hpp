// A thread that moves an engine along while its caller does other work.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

#include "lepton/signals.hpp"

namespace lepton {

// Guards an engine that one caller and one thread work on in turns. Without `begin` there is no thread, only the lock.
//
// MPI must have been started with MPI_THREAD_MULTIPLE for the thread. It ends with this object, or when MPI_Finalize
// begins, whichever is earlier. No signal is ever delivered to it.
class ProgressThread {
 public:
  // What the thread asks of the engine, always with the lock held.
  struct Engine {
    std::function<bool()> busy;        // whether there is anything left to do
    std::function<bool()> advance;     // does what can be done without waiting; true if anything was
    std::function<bool()> exchanging;  // whether MPI has something to move, which it does only while it is called
  };

  // A caller that waits and does the work itself; the thread rests meanwhile.
  class Caller {
   public:
    explicit Caller(ProgressThread& thread) : thread_(thread) { ++thread_.callers_; }
    ~Caller() {
      --thread_.callers_;
      thread_.wake();
    }
    Caller(const Caller&) = delete;
    Caller& operator=(const Caller&) = delete;

   private:
    ProgressThread& thread_;
  };

  ProgressThread() = default;
  ~ProgressThread();
  ProgressThread(const ProgressThread&) = delete;
  ProgressThread& operator=(const ProgressThread&) = delete;

  // Starts the thread. Signals are what the engine waits for inside the node.
  void begin(const Signals& signals, Engine engine);
  // Ends it; from then on callers do all the work.
  void stop();
  bool runs() const { return runs_; }

  // Takes the lock; throws what the thread failed with, once.
  std::unique_lock<std::mutex> lock();
  // Says that there may be something to do. Never waits for the thread.
  void wake();

 private:
  void run(const Signals& signals, const Engine& engine);

  std::mutex mutex_;       // of the engine
  std::mutex wake_mutex_;  // held for moments only, so that `wake` does not wait for the engine
  std::condition_variable wake_;
  std::uint64_t wakes_ = 0;
  std::atomic<int> callers_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> runs_{false};
  std::exception_ptr failure_;
  std::thread thread_;
  int keyval_ = 0;  // of the attribute by which MPI_Finalize ends the thread
};

}  // namespace lepton
