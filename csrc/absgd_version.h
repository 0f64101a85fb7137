/* The version of the library and of the Python package: CMakeLists.txt and setup.py read it here.
 */
#ifndef ABSGD_VERSION_H
#define ABSGD_VERSION_H

#define ABSGD_VERSION_MAJOR 0
#define ABSGD_VERSION_MINOR 2
#define ABSGD_VERSION_PATCH 0

/* For #if ABSGD_VERSION >= 200: 10,000 × major + 100 × minor + patch. */
#define ABSGD_VERSION                                                                              \
    (ABSGD_VERSION_MAJOR * 10000 + ABSGD_VERSION_MINOR * 100 + ABSGD_VERSION_PATCH)

#endif
