/* Programs as a user starts them. */
#ifndef PROGRAM_RIG_H
#define PROGRAM_RIG_H
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

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

}  // namespace program_rig
#endif
