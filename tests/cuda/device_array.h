/* What the tests of the CUDA C ABI share. They run twice: on a card, and without one, compiled
 * against tests/cuda_host, where device memory is the heap's. */
#ifndef DEVICE_ARRAY_H
#define DEVICE_ARRAY_H

#include "absgd.h"
#include "half.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

inline void check_cuda(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/* n values of T on the device, exactly. */
template <class T> class DeviceArray {
  public:
    explicit DeviceArray(const std::vector<T> &values) : size_(values.size()) {
        void *memory = nullptr;
        check_cuda(cudaMalloc(&memory, bytes()));
        data_ = static_cast<T *>(memory);
        set(values);
    }
    explicit DeviceArray(const T &value) : DeviceArray(std::vector<T>{value}) {}
    DeviceArray(const DeviceArray &) = delete;
    DeviceArray &operator=(const DeviceArray &) = delete;
    ~DeviceArray() { cudaFree(data_); }

    T *data() const { return data_; }

    void set(const std::vector<T> &values) {
        if (size_) check_cuda(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyDefault));
    }
    void set(const T &value) { set(std::vector<T>{value}); }

    /* Waits for all that was queued on the default stream. */
    std::vector<T> get() const {
        std::vector<T> values(size_);
        if (size_) check_cuda(cudaMemcpy(values.data(), data_, bytes(), cudaMemcpyDefault));
        return values;
    }

  private:
    size_t bytes() const { return size_ * sizeof(T); }
    size_t size_;
    T *data_;
};

/* ---- values of any dtype, as bytes ---- */

using Bytes = std::vector<char>;

constexpr absgd_dtype DTYPES[] = {ABSGD_FLOAT32, ABSGD_FLOAT64, ABSGD_FLOAT16, ABSGD_BFLOAT16};

inline absgd_dtype arithmetic_type(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? ABSGD_FLOAT64 : ABSGD_FLOAT32;
}

inline size_t size_of(absgd_dtype dtype) {
    return dtype == ABSGD_FLOAT64 ? 8 : dtype == ABSGD_FLOAT32 ? 4 : 2;
}

/* Unit roundoff, times two. */
inline double epsilon(absgd_dtype dtype) {
    constexpr double OF[] = {0x1p-23, 0x1p-52, 0x1p-10, 0x1p-7};
    return OF[dtype];
}

template <class T> void put(Bytes &bytes, size_t i, T value) {
    memcpy(bytes.data() + i * sizeof value, &value, sizeof value);
}

template <class T> T take(const Bytes &bytes, size_t i) {
    T value;
    memcpy(&value, bytes.data() + i * sizeof value, sizeof value);
    return value;
}

inline Bytes encode(absgd_dtype dtype, const std::vector<double> &values) {
    Bytes bytes(values.size() * size_of(dtype));
    for (size_t i = 0; i < values.size(); i++) {
        switch (dtype) {
            case ABSGD_FLOAT32: put(bytes, i, static_cast<float>(values[i])); break;
            case ABSGD_FLOAT64: put(bytes, i, values[i]); break;
            case ABSGD_FLOAT16:
                put(bytes, i, absgd_f16_store(static_cast<float>(values[i])));
                break;
            case ABSGD_BFLOAT16:
                put(bytes, i, absgd_bf16_store(static_cast<float>(values[i])));
                break;
        }
    }
    return bytes;
}

inline std::vector<double> decode(absgd_dtype dtype, const Bytes &bytes) {
    std::vector<double> values(bytes.size() / size_of(dtype));
    for (size_t i = 0; i < values.size(); i++) {
        switch (dtype) {
            case ABSGD_FLOAT32: values[i] = take<float>(bytes, i); break;
            case ABSGD_FLOAT64: values[i] = take<double>(bytes, i); break;
            case ABSGD_FLOAT16: values[i] = absgd_f16_load(take<absgd_f16>(bytes, i)); break;
            case ABSGD_BFLOAT16: values[i] = absgd_bf16_load(take<absgd_bf16>(bytes, i)); break;
        }
    }
    return values;
}

/* ---- data and comparison ---- */

constexpr double INF = std::numeric_limits<double>::infinity();
/* Whether the CPU may compute a batch in float (ABSGD_LARGE); the device computes in double. */
inline bool is_large_on_cpu(absgd_dtype dtype, size_t n) {
    return dtype != ABSGD_FLOAT64 && n >= ABSGD_LARGE;
}

constexpr double NOT_A_NUMBER = std::numeric_limits<double>::quiet_NaN();

inline std::vector<double> normal_values(size_t n, unsigned seed, double mean = 0.0,
                                         double deviation = 1.0) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(mean, deviation);
    std::vector<double> values(n);
    for (double &x : values) x = normal(random);
    return values;
}

/* |a − b| ≤ relative·|b| + absolute; NaN is close to NaN, ∞ to itself. */
inline bool is_close(double a, double b, double relative, double absolute) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    if (std::isinf(a) || std::isinf(b)) return a == b;
    return std::fabs(a - b) <= relative * std::fabs(b) + absolute;
}

inline void expect_close(const std::vector<double> &got, const std::vector<double> &wanted,
                         double relative, double absolute, const std::string &what) {
    ASSERT_EQ(got.size(), wanted.size()) << what;
    for (size_t i = 0; i < got.size(); i++) {
        ASSERT_TRUE(is_close(got[i], wanted[i], relative, absolute))
            << what << "[" << i << "]: got " << got[i] << ", wanted " << wanted[i];
    }
}

/* A struct of doubles, as them. */
template <class Struct> std::vector<double> doubles_of(const Struct &s) {
    std::vector<double> values(sizeof s / sizeof(double));
    memcpy(values.data(), &s, sizeof s);
    return values;
}

#endif
