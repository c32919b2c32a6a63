// What the checks share: random memory as a struct's tensors, calls at every instruction set, comparisons.
#ifndef NVSUBQ_TEST_HARNESS_H
#define NVSUBQ_TEST_HARNESS_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "nvsubq.h"

extern int failures;

// fp32 against loops in fp64, relative to the largest value; fp64 against the same loops.
const double kTolerance[2] = {1e-5, 1e-12};

// A tensor of doubles that the naive loops read, and the same numbers as a kernel takes them, exactly allocated: what
// lies beside it belongs to a sanitizer.
class Tensor {
 public:
  Tensor(std::vector<int64_t> shape, bool wide) : shape_(shape), wide_(wide) {
    int64_t count = 1;
    for (int64_t n : shape) count *= n;
    values.assign(size_t(count), 0.0);
    data_ = malloc(size_t(count) * (wide ? 8 : 4) + 1);
    memset(data_, 0xff, size_t(count) * (wide ? 8 : 4));  // NaN: what a kernel leaves out is seen
  }
  ~Tensor() { free(data_); }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  // Numbers from -scale to scale, the same on every machine.
  Tensor& draw(double scale = 1.0) {
    static uint64_t state = 88172645463325252ull;
    for (double& v : values) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      v = float(scale * (double(state >> 11) / 4503599627370496.0 - 1.0));
    }
    return give();
  }
  Tensor& give() {
    for (size_t i = 0; i < values.size(); ++i) wide_ ? void(at<double>()[i] = values[i]) : void(at<float>()[i] = float(values[i]));
    return *this;
  }
  // Compares what a kernel wrote with `values`.
  void expect(const char* call, const char* name, double slack = 1.0) {
    double worst = 0, most = 1e-30;
    for (size_t i = 0; i < values.size(); ++i) {
      const double own = wide_ ? at<double>()[i] : double(at<float>()[i]), error = fabs(own - values[i]);
      if (!(error <= worst)) worst = isnan(error) ? INFINITY : error;
      if (fabs(values[i]) > most) most = fabs(values[i]);
    }
    if (worst / most <= kTolerance[wide_] * slack) return;
    printf("%s: %s is off by %.2e of its largest value\n", call, name, worst / most);
    ++failures;
  }
  nvsubq_tensor tensor() const {
    nvsubq_tensor t = {};
    t.data = data_;
    t.dtype = wide_ ? NVSUBQ_F64 : NVSUBQ_F32;
    t.flags = NVSUBQ_PRESENT;
    int64_t stride = 1;
    for (size_t i = shape_.size(); i-- > 0; stride *= shape_[i]) t.stride[i] = stride;
    return t;
  }

  std::vector<double> values;

 private:
  template <class T>
  T* at() { return static_cast<T*>(data_); }
  std::vector<int64_t> shape_;
  bool wide_;
  void* data_;
};

// Gives a struct its head and its memory, runs a forward and, after it, a backward.
template <class Args>
void call(Args& a, int64_t level, int64_t threads, int64_t (*workspace)(const Args*), int64_t (*saved)(const Args*),
          int (*forward)(const Args*), int (*backward)(const Args*)) {
  a.size = sizeof(Args), a.abi = NVSUBQ_ABI, a.level = level, a.threads = threads;
  a.workspace_bytes = workspace(&a), a.saved_bytes = saved(&a);
  if (a.workspace_bytes < 0 || a.saved_bytes < 0) {
    printf("refused: %s\n", nvsubq_last_error());
    ++failures;
    return;
  }
  a.workspace = malloc(size_t(a.workspace_bytes) + 1), a.saved = malloc(size_t(a.saved_bytes) + 1);
  for (auto pass : {forward, backward}) {
    memset(a.workspace, 0xff, size_t(a.workspace_bytes));
    if (pass == forward) memset(a.saved, 0xff, size_t(a.saved_bytes));
    if (pass(&a)) {
      printf("refused: %s\n", nvsubq_last_error());
      ++failures;
    }
  }
  free(a.workspace), free(a.saved);
}
#define CALL(op, args, level, threads) \
  call(args, level, threads, nvsubq_##op##_workspace, nvsubq_##op##_saved, nvsubq_##op##_forward, nvsubq_##op##_backward)

inline double sigmoid_of(double x) { return 1 / (1 + exp(-x)); }
inline double silu_of(double x) { return x * sigmoid_of(x); }
inline double silu_slope(double x) { return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x))); }

#endif
