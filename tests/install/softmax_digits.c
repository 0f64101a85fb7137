/* Softmax regression on digits with ABSGD, in plain C against the installed absgd alone: batch
 * losses and their gradients, weights by Algorithm 1, a momentum step.
 *
 *   softmax_digits digits.bin
 *
 * reads what digits.py wrote and prints the normaliser and the training accuracy after each epoch.
 * C17, and C++17 as it stands. */
#include <absgd.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { FEATURES = 64, CLASSES = 10, BATCH = 32, EPOCHS = 5, MAX_SAMPLES = 1797 };

static float images[MAX_SAMPLES][FEATURES];
static int64_t labels[MAX_SAMPLES];
static float w[CLASSES][FEATURES], dw[CLASSES][FEATURES], v[CLASSES][FEATURES];

static void ok(absgd_status status) {
    if (status == ABSGD_OK) return;
    fprintf(stderr, "absgd: %s\n", absgd_status_string(status));
    exit(1);
}

static int64_t read_digits(const char *path) {
    int64_t n = 0;
    FILE *file = fopen(path, "rb");
    if (!file || fread(&n, sizeof n, 1, file) != 1 || n < BATCH || n > MAX_SAMPLES ||
        fread(images, sizeof images[0], (size_t)n, file) != (size_t)n ||
        fread(labels, sizeof labels[0], (size_t)n, file) != (size_t)n) {
        fprintf(stderr, "%s is not what digits.py writes\n", path);
        exit(1);
    }
    fclose(file);
    return n;
}

static void logits_of(const float *x, float *logits) {
    for (int c = 0; c < CLASSES; c++) {
        logits[c] = 0;
        for (int j = 0; j < FEATURES; j++) logits[c] += w[c][j] * x[j];
    }
}

int main(int argc, char **argv) {
    if (argc != 2 || absgd_version() != ABSGD_VERSION) {
        fprintf(stderr, "usage: softmax_digits digits.bin, with the library of its header\n");
        return 1;
    }
    const int64_t n = read_digits(argv[1]);
    const double lam = 2.0;
    double log_s = NAN, log_s_lam = lam;
    static absgd_rule rule; /* static: all zero, whatever fields later versions add */
    rule.gamma = 0.9;
    rule.alpha = 1.0;
    rule.s_init = NAN; /* the first batch sets it */
    static absgd_report reports[2];
    reports[1].count = NAN; /* the running mean has seen no batch */
    static absgd_softmax_loss loss;
    loss.samples = BATCH;
    loss.classes = CLASSES;
    loss.inner = 1;
    loss.scale = 1.0;
    loss.ignore_index = -100;
    static absgd_sgd_options options;
    options.lr = 0.1;
    options.momentum = 0.9;
    options.weight_decay = 1e-4;
    options.grad_scale = 1.0;
    static absgd_tensor tensor;
    tensor.param = w;
    tensor.grad = dw;
    tensor.momentum = v;
    tensor.numel = CLASSES * FEATURES;
    tensor.fresh = 1; /* v has no value yet */

    /* --8<-- [start:training] */
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        for (int64_t begin = 0; begin + BATCH <= n; begin += BATCH) {
            static float logits[BATCH][CLASSES], dlogits[BATCH][CLASSES];
            static float losses[BATCH], saved[ABSGD_LOSS_SAVED][BATCH], p[BATCH],
                coefficients[BATCH];
            const int64_t *y = labels + begin;

            for (int i = 0; i < BATCH; i++) logits_of(images[begin + i], logits[i]);
            ok(absgd_softmax_loss_forward(ABSGD_FLOAT32, &loss, logits, y, NULL, losses, saved,
                                          NULL, 0, BATCH));
            ok(absgd_weigh(ABSGD_FLOAT32, losses, NULL, NULL, BATCH, &lam, &rule, &log_s,
                           &log_s_lam, reports, p, coefficients));
            ok(absgd_softmax_loss_backward(ABSGD_FLOAT32, &loss, logits, y, NULL, saved, NULL,
                                           coefficients, dlogits, 0, BATCH));

            for (int c = 0; c < CLASSES; c++) {
                for (int j = 0; j < FEATURES; j++) {
                    dw[c][j] = 0;
                    for (int i = 0; i < BATCH; i++)
                        dw[c][j] += dlogits[i][c] * images[begin + i][j];
                }
            }
            ok(absgd_sgd_step(ABSGD_FLOAT32, &tensor, 1, &options, 0, tensor.numel));
            tensor.fresh = 0;
        }
        /* --8<-- [end:training] */
        int64_t right = 0;
        for (int64_t i = 0; i < n; i++) {
            float logits[CLASSES];
            int best = 0;
            logits_of(images[i], logits);
            for (int c = 1; c < CLASSES; c++) best = logits[c] > logits[best] ? c : best;
            right += best == labels[i];
        }
        printf("epoch %d log_s %.9f accuracy %.6f\n", epoch + 1, log_s, (double)right / (double)n);
    }
    return 0;
}
