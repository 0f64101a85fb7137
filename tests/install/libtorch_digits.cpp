// The same softmax regression with LibTorch and the C++ optimizer, against the installed absgd; λ
// follows a rule, and the gradient's scale is kept.
#include <absgd_libtorch.h>

#include <cstdio>
#include <fstream>

int main(int, char **argv) {
    std::ifstream file(argv[1], std::ios::binary);
    int64_t n = 0;
    file.read(reinterpret_cast<char *>(&n), sizeof n);
    auto x = torch::empty({n, 64}), y = torch::empty({n}, torch::kLong);
    file.read(static_cast<char *>(x.data_ptr()), n * 64 * sizeof(float));
    file.read(static_cast<char *>(y.data_ptr()), n * sizeof(int64_t));

    // --8<-- [start:training]
    auto w = torch::zeros({10, 64}).requires_grad_();
    absgd::ABSGD opt({w}, absgd::ABSGDOptions(0.1)
                              .momentum(0.9)
                              .weight_decay(1e-4)
                              .lam(absgd::EffectiveSampleSize(0.8))
                              .keep_loss(true));
    const auto per_sample =
        torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone);
    for (int epoch = 0; epoch < 5; epoch++) {
        for (int64_t i = 0; i + 32 <= n; i += 32) {
            auto logits = torch::matmul(x.slice(0, i, i + 32), w.t());
            auto losses =
                torch::nn::functional::cross_entropy(logits, y.slice(0, i, i + 32), per_sample);
            opt.weigh(losses).backward();
            opt.step();
            opt.zero_grad();
        }
        // --8<-- [end:training]
        const auto right = torch::matmul(x, w.t()).argmax(1).eq(y).sum().item<int64_t>();
        std::printf("epoch %d log_s %.9f accuracy %.6f\n", epoch + 1, opt.log_s().item<double>(),
                    static_cast<double>(right) / static_cast<double>(n));
    }
}
