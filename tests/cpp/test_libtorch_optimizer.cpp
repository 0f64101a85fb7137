/* absgd::ABSGD for LibTorch's C++ front end: against torch::optim::SGD, against Algorithm 1 written
 * in tensors, and training a small bidirectional LSTM on imbalanced sequences. */
#include "absgd_libtorch.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>

namespace {

namespace F = torch::nn::functional;

torch::Tensor per_sample(const torch::Tensor &logits, const torch::Tensor &y) {
    return F::cross_entropy(logits, y, F::CrossEntropyFuncOptions().reduction(torch::kNone));
}

torch::nn::Sequential small_net() {
    torch::manual_seed(0);
    return torch::nn::Sequential(torch::nn::Linear(5, 8), torch::nn::Tanh(),
                                 torch::nn::Linear(8, 3));
}

TEST(LibtorchABSGD, AtInfiniteLambdaItIsTorchsSgd) {
    for (bool nesterov : {false, true}) {
        auto a = small_net(), b = small_net();
        absgd::ABSGD ours(
            a->parameters(),
            absgd::ABSGDOptions(0.1).momentum(0.9).weight_decay(0.01).nesterov(nesterov));
        torch::optim::SGD theirs(
            b->parameters(),
            torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01).nesterov(nesterov));
        for (int step = 0; step < 5; step++) {
            const auto x = torch::randn({16, 5}), y = torch::randint(3, {16});
            ours.zero_grad();
            theirs.zero_grad();
            ours.weigh(per_sample(a->forward(x), y)).backward();
            per_sample(b->forward(x), y).mean().backward();
            ours.step();
            theirs.step();
        }
        for (size_t i = 0; i < a->parameters().size(); i++) {
            EXPECT_TRUE(torch::allclose(a->parameters()[i], b->parameters()[i], 1e-5, 1e-6));
        }
    }
}

TEST(LibtorchABSGD, WeighIsAlgorithmOne) {
    auto net = small_net();
    const double lam = 0.5, gamma = 0.7;
    absgd::ABSGD opt(net->parameters(), absgd::ABSGDOptions(0.1).lam(lam).gamma(gamma));
    torch::Tensor log_s;
    for (int step = 0; step < 3; step++) {
        const auto losses = torch::rand({10}, torch::kDouble).mul(3).requires_grad_();
        const auto total = opt.weigh(losses);
        const auto z = losses.detach() / lam;
        const auto l = torch::logsumexp(z, 0) - std::log(10.0);
        log_s = step == 0 ? l : torch::logaddexp(std::log(1 - gamma) + log_s, std::log(gamma) + l);
        const auto p = torch::exp(z - log_s);
        total.backward();
        EXPECT_TRUE(torch::allclose(opt.log_s(), log_s));
        EXPECT_TRUE(torch::allclose(opt.weights(), p));
        EXPECT_TRUE(torch::allclose(total, (p * losses).mean()));
        EXPECT_TRUE(torch::allclose(losses.grad(), p / 10));
    }
}

TEST(LibtorchABSGD, PolyakIsThePapersEquationTwo) {
    auto w = torch::tensor({1.0, -2.0}, torch::kDouble).requires_grad_();
    absgd::ABSGD opt(std::vector<torch::Tensor>{w},
                     absgd::ABSGDOptions(0.1).momentum(0.5).polyak(true));
    auto before = w.detach().clone(), now = before.clone();
    for (int step = 0; step < 4; step++) {
        const double lr = 0.1 / (step + 1);
        static_cast<absgd::ABSGDOptions &>(opt.param_groups()[0].options()).lr(lr);
        const auto next = now - lr * 2 * now + 0.5 * (now - before);
        before = now;
        now = next;
        opt.zero_grad();
        opt.weigh(w * w).mul(2).backward(); /* the sum of squares: B = 2 */
        opt.step();
        EXPECT_TRUE(torch::allclose(w, now));
    }
}

TEST(LibtorchABSGD, BadArgumentsAreErrors) {
    const auto params = small_net()->parameters();
    EXPECT_THROW(absgd::ABSGD(params, absgd::ABSGDOptions(0.1).lam(0)), c10::Error);
    EXPECT_THROW(absgd::ABSGD(params, absgd::ABSGDOptions(0.1).gamma(0)), c10::Error);
    EXPECT_THROW(absgd::ABSGD(params, absgd::ABSGDOptions(0.1).nesterov(true)), c10::Error);
    absgd::ABSGD opt(params);
    EXPECT_THROW(opt.weigh(torch::tensor(1.0)), c10::Error);
    EXPECT_THROW(opt.weigh(torch::ones({3}, torch::kInt64)), c10::Error);
}

TEST(LibtorchABSGD, SavedAndLoadedItGoesOnBitForBit) {
    auto a = small_net(), b = small_net();
    const auto options = absgd::ABSGDOptions(0.1).momentum(0.9).lam(1.0);
    absgd::ABSGD first(a->parameters(), options), second(b->parameters(), options);
    const auto x = torch::randn({8, 5}), y = torch::randint(3, {8});
    const auto step = [&](auto &net, absgd::ABSGD &opt) {
        opt.zero_grad();
        opt.weigh(per_sample(net->forward(x), y)).backward();
        opt.step();
    };
    step(a, first);
    std::stringstream file;
    torch::save(first, file);
    torch::load(second, file);
    torch::NoGradGuard no_grad;
    for (size_t i = 0; i < a->parameters().size(); i++) {
        b->parameters()[i].copy_(a->parameters()[i]);
    }
    torch::AutoGradMode with_grad(true);
    step(a, first);
    step(b, second);
    EXPECT_TRUE(torch::equal(first.log_s(), second.log_s()));
    for (size_t i = 0; i < a->parameters().size(); i++) {
        EXPECT_TRUE(torch::equal(a->parameters()[i], b->parameters()[i]));
    }
}

/* An archive as the version before guards and rules wrote it: reports of 7 numbers, no lam_rule. */
torch::serialize::InputArchive old_state(bool has_seen_batches, const torch::Tensor &buffer) {
    torch::serialize::OutputArchive out;
    const auto one = [](double value) { return torch::full({}, value, torch::kDouble); };
    out.write("lam", one(0.5), true);
    out.write("log_s", one(1.25), true);
    out.write("log_s_lam", one(0.5), true);
    const auto reports = torch::arange(1, 15, torch::kDouble).view({2, 7});
    out.write("reports", has_seen_batches ? reports : torch::full_like(reports, NAN), true);
    out.write("momentum_buffer_0", buffer, true);
    std::stringstream file;
    out.save_to(file);
    torch::serialize::InputArchive in;
    in.load_from(file);
    return in;
}

TEST(LibtorchABSGD, AStateOfBeforeTheGuardsIsLoaded) {
    const auto w = torch::ones({2}).requires_grad_();
    absgd::ABSGD opt({w}, absgd::ABSGDOptions(0.1).momentum(0.5).lam(absgd::KLRadius(0.1)));
    auto old = old_state(true, torch::tensor({3.0f, 4.0f}));
    opt.load(old);
    EXPECT_EQ(opt.lam().item<double>(), 0.5);
    EXPECT_EQ(opt.log_s().item<double>(), 1.25);
    const auto expected = torch::tensor(
        {{1., 2., 3., 4., 5., 6., 7., 1., 0.}, {8., 9., 10., 11., 12., 13., 14., 1., 0.}},
        torch::kDouble);
    EXPECT_TRUE(torch::equal(opt.reports(), expected));
    w.mutable_grad() = torch::zeros({2});
    opt.step();
    EXPECT_TRUE(torch::allclose(w, torch::tensor({1 - 0.1 * 1.5, 1 - 0.1 * 2.0}, torch::kFloat)));

    auto unused = old_state(false, torch::empty({0}));
    opt.load(unused);
    EXPECT_TRUE(opt.reports().isnan().all().item<bool>());
    EXPECT_TRUE(opt.state().empty()); /* its momentum had no value yet */

    auto another = old_state(true, torch::ones({3})); /* another model's: nothing is changed */
    EXPECT_THROW(opt.load(another), c10::Error);
    EXPECT_TRUE(opt.reports().isnan().all().item<bool>());
}

TEST(LibtorchABSGD, ARuleIsSavedAndLoaded) {
    const auto w = torch::ones({2}).requires_grad_();
    absgd::ABSGD a({w}, absgd::ABSGDOptions(0.1).lam(absgd::KLRadius(0.1).rate(0.5)));
    absgd::ABSGD b({w}, absgd::ABSGDOptions(0.1).lam(2.0));
    a.weigh(torch::tensor({1.0, 2.0}) * w);
    std::stringstream file;
    torch::save(a, file);
    torch::load(b, file);
    a.weigh(torch::tensor({1.0, 5.0}) * w);
    b.weigh(torch::tensor({1.0, 5.0}) * w);
    EXPECT_TRUE(torch::equal(a.lam(), b.lam()));
    EXPECT_TRUE(torch::equal(a.log_s(), b.log_s())); /* γ is 1, the rule's, for both */
    EXPECT_TRUE(torch::equal(a.reports(), b.reports()));
}

TEST(LibtorchABSGD, ARestartForgetsMomentumIfAskedTo) {
    const auto w = torch::zeros({1}).requires_grad_();
    absgd::ABSGD opt({w}, absgd::ABSGDOptions(1.0).momentum(0.5));
    w.mutable_grad() = torch::ones({1});
    opt.step(); /* w = −1, v = 1 */
    opt.restart(1.0);
    opt.step(); /* v = 1.5 */
    EXPECT_EQ(w.item<double>(), -2.5);
    opt.restart(1.0, true);
    opt.step();
    EXPECT_EQ(w.item<double>(), -3.5);
}

TEST(LibtorchABSGD, AGroupWithoutParametersIsNoneToStep) {
    const auto w = torch::ones({2}).requires_grad_();
    std::vector<torch::optim::OptimizerParamGroup> groups;
    groups.emplace_back(std::vector<torch::Tensor>{});
    groups.emplace_back(std::vector<torch::Tensor>{w});
    absgd::ABSGD opt(groups, absgd::ABSGDOptions(0.5));
    w.mutable_grad() = torch::ones({2});
    opt.step();
    EXPECT_EQ(w[0].item<double>(), 0.5);
}

TEST(LibtorchABSGD, MomentumOfTheOtherFormIsNotLoaded) {
    std::stringstream saved;
    const auto w = torch::ones({2}).requires_grad_();
    absgd::ABSGD opt({w}, absgd::ABSGDOptions(0.5).momentum(0.9).polyak(true));
    w.mutable_grad() = torch::ones({2});
    opt.step();
    torch::save(opt, saved);
    absgd::ABSGD other({w}, absgd::ABSGDOptions(0.5).momentum(0.9));
    EXPECT_THROW(torch::load(other, saved), c10::Error);
    EXPECT_TRUE(other.state().empty());
}

struct BiLstmImpl : torch::nn::Module {
    BiLstmImpl()
        : lstm(register_module(
              "lstm", torch::nn::LSTM(
                          torch::nn::LSTMOptions(1, 12).bidirectional(true).batch_first(true)))),
          head(register_module("head", torch::nn::Linear(24, 2))) {}

    torch::Tensor forward(const torch::Tensor &x) { return head(std::get<0>(lstm(x)).mean(1)); }

    torch::nn::LSTM lstm;
    torch::nn::Linear head;
};
TORCH_MODULE(BiLstm);

/* Sequences of noise, and of noise on a wave, 1 in 8 of them. */
std::pair<torch::Tensor, torch::Tensor> sequences(int64_t n) {
    const auto y = (torch::arange(n) % 8 == 0).to(torch::kLong);
    const auto wave = torch::sin(torch::arange(16) * 0.8).view({1, 16, 1});
    return {0.5 * torch::randn({n, 16, 1}) + y.view({n, 1, 1}) * wave, y};
}

TEST(LibtorchABSGD, TrainsABidirectionalLstmOnImbalancedSequences) {
    torch::manual_seed(1);
    BiLstm model;
    absgd::ABSGD opt(model->parameters(), absgd::ABSGDOptions(0.1).momentum(0.9));
    const auto [x, y] = sequences(256);
    for (int epoch = 0; epoch < 60; epoch++) {
        if (epoch == 20) opt.restart(2.0); /* stage two */
        for (int64_t i = 0; i < 256; i += 64) {
            opt.zero_grad();
            const auto rows = torch::indexing::Slice(i, i + 64);
            opt.weigh(per_sample(model->forward(x.index({rows})), y.index({rows}))).backward();
            opt.step();
        }
    }
    torch::NoGradGuard no_grad;
    const auto [x_test, y_test] = sequences(400);
    const auto predicted = model->forward(x_test).argmax(1);
    const auto recall = [&](int64_t c) {
        return predicted.index({y_test == c}).eq(c).to(torch::kDouble).mean().item<double>();
    };
    EXPECT_GT(recall(0), 0.9);
    EXPECT_GT(recall(1), 0.9); /* the rare class; at the start of training it is 0 or 1 with the
                                  other at 1 or 0 */
    EXPECT_TRUE(std::isfinite(opt.log_s().item<double>()));
}

} // namespace
