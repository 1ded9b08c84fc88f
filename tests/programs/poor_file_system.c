/* A file system without locks that cannot wait for folders: what some of FUSE's and of Lustre's answer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <sys/stat.h>

int flock(int descriptor, int operation) {
    errno = ENOSYS;
    return -1;
}

int fsync(int descriptor) {
    static int (*real)(int);
    struct stat about;
    if (fstat(descriptor, &about) == 0 && S_ISDIR(about.st_mode)) {
        errno = EINVAL;
        return -1;
    }
    if (!real)
        real = dlsym(RTLD_NEXT, "fsync");
    return real(descriptor);
}
