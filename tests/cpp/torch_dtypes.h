// absgd_dtype beside torch's, for the tests.
#pragma once

#include "absgd.h"

#include <torch/torch.h>

#include <array>

struct Dtype {
    absgd_dtype absgd;
    torch::ScalarType torch;
    torch::ScalarType arithmetic; // what values of it are computed in

    double eps() const {
        switch (absgd) {
            case ABSGD_FLOAT64: return 0x1p-52;
            case ABSGD_FLOAT32: return 0x1p-23;
            case ABSGD_FLOAT16: return 0x1p-10;
            default: return 0x1p-7;
        }
    }
};

inline const std::array<Dtype, 4> DTYPES = {{
    {ABSGD_FLOAT32, torch::kFloat32, torch::kFloat32},
    {ABSGD_FLOAT64, torch::kFloat64, torch::kFloat64},
    {ABSGD_FLOAT16, torch::kFloat16, torch::kFloat32},
    {ABSGD_BFLOAT16, torch::kBFloat16, torch::kFloat32},
}};

inline absgd_dtype no_dtype(int value) { return static_cast<absgd_dtype>(value); }
