/* Programs as a user starts them. */
#ifndef PROGRAM_RIG_H
#define PROGRAM_RIG_H
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

namespace program_rig {

struct Result {
    int code;                     /* exit code; 256 + signal when killed */
    std::string out, err;
};

inline pid_t start(const std::string &program, const std::vector<std::string> &args, const std::string &out, const std::string &err) {
    pid_t pid = fork();
    if (pid) return pid;
    std::vector<char *> argv = {(char *)program.c_str()};
    for (auto &a : args) argv.push_back((char *)a.c_str());
    argv.push_back(nullptr);
    int o = open(out.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600), e = open(err.c_str(), O_CREAT | O_WRONLY | O_TRUNC, 0600);
    if (o < 0 || e < 0 || dup2(o, 1) < 0 || dup2(e, 2) < 0) _exit(99);
    execv(argv[0], argv.data());
    _exit(98);
}

inline int wait_for(pid_t pid) {
    int status = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

/* Until the program handles the signal, 60 s at most: before that it would only die of it. */
inline bool handles(pid_t pid, int signal) {
    const std::string path = "/proc/" + std::to_string(pid) + "/status";
    for (int tries = 0; tries < 6000; tries++, usleep(10000)) {
        unsigned long long caught = 0;
        char line[256];
        FILE *f = fopen(path.c_str(), "r");
        if (!f) return false;
        while (fgets(line, sizeof line, f)) sscanf(line, "SigCgt: %llx", &caught);
        fclose(f);
        if (caught >> (signal - 1) & 1) return true;
    }
    return false;
}

}  // namespace program_rig
#endif
